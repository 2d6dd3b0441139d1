"use strict";

// Shows the tip of a bar: under the pointer, and with the arrow keys while the chart has the focus.
for (const chart of document.querySelectorAll(".canvas")) {
  const svg = chart.querySelector("svg");
  const tip = chart.querySelector(".tip");
  const bars = [...chart.querySelectorAll(".bar")];
  if (!bars.length) continue;
  let chosen = -1;

  function show(index) {
    bars.forEach((bar, number) => bar.classList.toggle("on", number === index));
    chosen = index;
    tip.hidden = index < 0;
    if (index < 0) return;
    tip.textContent = bars[index].dataset.tip;
    const middle = ((index + 0.5) / bars.length) * chart.clientWidth;
    const left = middle < chart.clientWidth / 2 ? middle + 12 : middle - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(0, Math.min(left, chart.clientWidth - tip.offsetWidth))}px`;
  }

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const index = Math.floor(((event.clientX - box.left) / box.width) * bars.length);
    show(Math.max(0, Math.min(bars.length - 1, index)));
  });
  chart.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step) return;
    event.preventDefault();
    show(chosen < 0 ? (step > 0 ? 0 : bars.length - 1) : Math.max(0, Math.min(bars.length - 1, chosen + step)));
  });
}

// A form that takes seconds shows its text and is sent once.
for (const form of document.querySelectorAll("form[data-busy]")) {
  form.addEventListener("submit", () => {
    form.querySelector(".busy").textContent = form.dataset.busy;
    form.querySelector("button").disabled = true;
  });
}
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// A page that waits for a refresh reloads when its state changes.
const { state, stateUrl } = document.body.dataset;
if (stateUrl && document.querySelector(".notice.progress")) {
  const timer = setInterval(async () => {
    try {
      const answer = await fetch(stateUrl, { headers: { Accept: "application/json" } });
      if (!answer.ok || (await answer.json()).state !== state) {
        clearInterval(timer);
        location.reload();
      }
    } catch {
      // Not reachable at the moment: the next tick tries again.
    }
  }, 2000);
}
