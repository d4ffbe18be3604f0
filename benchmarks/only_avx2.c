/* Lets a process believe that its x86-64 processor has AVX2, but neither VNNI nor AVX-512 nor AMX.
 *
 * Loaded with LD_PRELOAD; needs Linux and a processor whose CPUID instruction can be made to fault (`cpuid_fault` in
 * /proc/cpuinfo). Each CPUID then raises SIGSEGV; the handler executes it and clears the bits of newer instructions.
 * Numbers of leaves and bits: Intel SDM, volume 2A, CPUID.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(number) (1u << (number))

static const unsigned AVX512_EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned AVX512_ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned AVX512_AND_AMX_EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);

static int set_faulting(int is_on) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, !is_on); }

static void answer(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    set_faulting(0);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    set_faulting(1);
    if (leaf == 7 && subleaf == 0) {
        a = 0; /* no further subleaf, where AVX-VNNI is */
        b &= ~AVX512_EBX;
        c &= ~AVX512_ECX;
        d &= ~AVX512_AND_AMX_EDX;
    } else if (leaf == 7) {
        a = b = c = d = 0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (sigaction(SIGSEGV, &action, NULL) || set_faulting(1)) {
        fputs("only_avx2: CPUID cannot be made to fault on this machine\n", stderr);
        exit(1);
    }
}
