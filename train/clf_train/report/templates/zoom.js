// Enlarges an image: every .zoom button is inside a figure, and its neighbors are the others of the same .images.
"use strict";
(() => {
  const dialog = document.getElementById("zoom");
  const enlarged = dialog.querySelector("img");
  const caption = dialog.querySelector(".caption");
  let current = null;

  const neighbors = () => [...current.closest(".images").querySelectorAll(".zoom")];

  function show(button) {
    current = button;
    const image = button.querySelector("img");
    enlarged.src = image.src;
    enlarged.alt = image.alt;
    enlarged.style.imageRendering = getComputedStyle(image).imageRendering;
    const figure = button.closest("figure");
    caption.className = `caption ${figure.className.replace("image", "")}`;
    caption.replaceChildren(...figure.querySelector("figcaption").cloneNode(true).childNodes);
    const name = caption.querySelector(".name");
    if (name) name.textContent = name.title; // the whole path
    const all = neighbors();
    const place = all.indexOf(button);
    dialog.querySelector(".previous").disabled = place === 0;
    dialog.querySelector(".next").disabled = place === all.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  function move(step) {
    const all = neighbors();
    const next = all[all.indexOf(current) + step];
    if (!next) return;
    // The page behind follows, so that a page that loads on demand has the neighbors.
    next.scrollIntoView({ block: "center" });
    show(next);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".zoom");
    if (button) show(button);
  });
  dialog.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (event.target === dialog || chosen?.className === "close") dialog.close();
    else if (chosen) move(chosen.className === "next" ? 1 : -1);
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });
  dialog.addEventListener("close", () => current?.focus());
})();
