// Pages work without this. With it a page that may change is asked for again while it is looked at, and the parts that have
// changed are replaced; a choice submits its form.
"use strict";

const EVERY_MS = 2000;
const LONGEST_MS = 30000;

for (const choice of document.querySelectorAll("[data-submits]")) {
  choice.addEventListener("change", () => choice.form.submit());
}

const pulse = document.getElementById("pulse");
let wait = EVERY_MS;

function show(state, text) {
  pulse.dataset.state = state;
  pulse.textContent = text;
}

// What somebody selects is not taken away from under them.
function isBeingRead(part) {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
}

function replace(part, next) {
  if (part.innerHTML === next.innerHTML || isBeingRead(part)) {
    return;
  }
  const open = [...part.querySelectorAll("details[open]")].map((details) => details.id);
  const scrolled = [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  part.replaceChildren(...document.adoptNode(next).childNodes);
  for (const id of open) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  part.querySelectorAll(".scroll").forEach((box, place) => {
    box.scrollLeft = scrolled[place] ?? 0;
  });
}

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store", headers: { accept: "text/html" } });
  if (!answer.ok) {
    throw new Error(`${answer.status}`);
  }
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  const parts = [...document.querySelectorAll("[data-part]")];
  const fresh = new Map([...next.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
  // A run that has closed has other parts than one that runs.
  if (parts.length !== fresh.size || parts.some((part) => !fresh.has(part.dataset.part))) {
    location.reload();
    return false;
  }
  for (const part of parts) {
    replace(part, fresh.get(part.dataset.part));
  }
  return "live" in next.body.dataset;
}

async function tick() {
  let goesOn = true;
  if (!document.hidden) {
    try {
      goesOn = await refresh();
      wait = EVERY_MS;
      show(goesOn ? "on" : "", goesOn ? "live" : "");
    } catch {
      wait = Math.min(2 * wait, LONGEST_MS);
      show("off", "no answer");
    }
  }
  if (goesOn) {
    setTimeout(tick, wait);
  }
}

if ("live" in document.body.dataset) {
  show("on", "live");
  setTimeout(tick, EVERY_MS);
}
