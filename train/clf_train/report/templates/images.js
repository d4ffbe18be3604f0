// Filters the test images. The address keeps the filters, so that a filtered page can be linked: #true=3&show=wrong
"use strict";
(() => {
  const CHUNK = 120; // images added at a time, when the end of the page comes near
  const NAME = 0, TRUE = 1, PREDICTED = 2, PROBABILITY = 3, SOURCE = 4;
  const { labels, type, images } = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const grid = document.getElementById("grid");
  const status = document.getElementById("status");
  const end = document.getElementById("end");
  const collator = new Intl.Collator("en", { numeric: true });
  let selected = [];
  let shown = 0;

  const isCorrect = (image) => image[TRUE] === image[PREDICTED];
  const number = (value) => value.toLocaleString("en");
  const percent = (tenths) => `${(tenths / 10).toFixed(1)}\u00a0%`;
  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function figure(image) {
    const correct = isCorrect(image);
    const made = element("figure", `image ${correct ? "correct" : "wrong"}`);
    const button = element("button", "zoom");
    button.type = "button";
    const img = element("img");
    img.decoding = "async";
    img.alt = `${labels[image[TRUE]]}, predicted ${labels[image[PREDICTED]]}`;
    img.src = `data:${type};base64,${image[SOURCE]}`;
    button.append(img);
    const caption = element("figcaption");
    const prediction = element("span", "prediction", labels[image[PREDICTED]]);
    prediction.title = labels[image[PREDICTED]];
    const mark = element("b", "", correct ? "✓" : "✗");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", correct ? "correct" : "wrong");
    const probability = element("span", "number");
    probability.append(mark, ` ${percent(image[PROBABILITY])}`);
    caption.append(prediction, probability);
    if (!correct) caption.append(element("span", "truth", `true: ${labels[image[TRUE]]}`));
    const name = element("span", "name", image[NAME].split("/").pop());
    name.title = image[NAME];
    caption.append(name);
    made.append(button, caption);
    return made;
  }

  function more() {
    const last = Math.min(shown + CHUNK, selected.length);
    grid.append(...selected.slice(shown, last).map(figure));
    shown = last;
    end.hidden = shown === selected.length;
  }

  const ORDERS = {
    data: null,
    sure: (a, b) => b[PROBABILITY] - a[PROBABILITY],
    unsure: (a, b) => a[PROBABILITY] - b[PROBABILITY],
    name: (a, b) => collator.compare(a[NAME], b[NAME]),
  };

  function update() {
    const values = Object.fromEntries(new FormData(form));
    const search = values.search.trim().toLowerCase();
    const matching = images.filter(
      (image) =>
        (values.true === "" || image[TRUE] === Number(values.true)) &&
        (values.predicted === "" || image[PREDICTED] === Number(values.predicted)) &&
        (search === "" || image[NAME].toLowerCase().includes(search)),
    );
    const correct = matching.filter(isCorrect).length;
    for (const [name, count] of Object.entries({ all: matching.length, correct, wrong: matching.length - correct })) {
      document.getElementById(`count-${name}`).textContent = number(count);
    }
    selected = values.show === "all" ? matching : matching.filter((image) => isCorrect(image) === (values.show === "correct"));
    if (ORDERS[values.sort]) selected = [...selected].sort(ORDERS[values.sort]);
    status.textContent = selected.length === 0 ? "No image matches these filters."
      : `${number(selected.length)} image${selected.length === 1 ? "" : "s"}`;
    grid.replaceChildren();
    shown = 0;
    more();
    const kept = Object.entries(values).filter(([key, value]) => value !== "" && value !== DEFAULTS[key]);
    const address = `#${new URLSearchParams(kept)}`;
    if (address !== (location.hash || "#")) history.replaceState(null, "", address);
  }

  const DEFAULTS = { show: "all", sort: "data" };

  function read() {
    form.reset();
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
      const field = form.elements.namedItem(key);
      if (field) field.value = value;
      if (field && field.selectedIndex === -1) field.value = ""; // a class that does not exist
    }
    update();
  }

  function fill(select, place) {
    const totals = labels.map(() => 0);
    for (const image of images) totals[image[place]]++;
    labels.forEach((label, index) => {
      if (totals[index] === 0) return;
      const option = element("option", "", `${label} (${number(totals[index])})`);
      option.value = index;
      select.append(option);
    });
  }

  fill(form.elements.namedItem("true"), TRUE);
  fill(form.elements.namedItem("predicted"), PREDICTED);
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  read();
  const observer = new IntersectionObserver(
    (entries) => {
      if (end.hidden || !entries.some((entry) => entry.isIntersecting)) return;
      more();
      // Observed anew, since a chunk may be too short to move the end out of sight.
      observer.unobserve(end);
      observer.observe(end);
    },
    { rootMargin: "1200px" },
  );
  observer.observe(end);
})();
