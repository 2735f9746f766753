"use strict";
const enlarged = document.getElementById("enlarged");
for (const button of document.querySelectorAll("button.enlarge")) button.onclick = () => {
  const [image, says, link] = ["img", "p", "a"].map((name) => enlarged.querySelector(name));
  image.src = button.querySelector("img").src;
  image.alt = button.querySelector("img").alt;
  says.textContent = button.dataset.says;
  link.href = button.dataset.link;
  enlarged.showModal();
};
enlarged.onclick = (event) => event.target === enlarged && enlarged.close();

const gallery = document.querySelector(".gallery[data-sorted]");
if (gallery) {
  const [by, order, least, shown] = ["by", "order", "least", "shown"].map((id) => document.getElementById(id));
  const every = [...gallery.children];
  const value = (figure) => parseFloat(JSON.parse(figure.dataset.values)[by.value] ?? "NaN");
  const arrange = () => {
    const sign = order.value === "down" ? -1 : 1;
    const known = every.map(value).filter((each) => !Number.isNaN(each));
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const from = low + (high - low) * least.value / 1000;
    // Who has no such value stands behind, and is hidden once there is a least one.
    const rank = (figure) => Number.isNaN(value(figure)) ? Infinity : sign * value(figure);
    gallery.append(...every.toSorted((a, b) => rank(a) === rank(b) ? 0 : rank(a) - rank(b)));
    for (const figure of every) {
      const mine = value(figure);
      figure.hidden = least.value > 0 && !(mine >= from);
      figure.querySelector(".by").textContent = Number.isNaN(mine) ? "" : `${by.value} ${mine.toPrecision(4)}`;
    }
    const count = every.filter((figure) => !figure.hidden).length;
    shown.textContent = `${count} of ${every.length}` + (least.value > 0 ? `, ${from.toPrecision(4)} or more` : "");
  };
  by.onchange = () => { least.value = 0; arrange(); };
  order.onchange = least.oninput = arrange;
  arrange();
}

const find = document.getElementById("find"), part = document.getElementById("part");
if (find) {
  const choose = () => {
    for (const row of document.querySelectorAll(".row")) {
      const hit = row.dataset.prompt.toLowerCase().includes(find.value.toLowerCase());
      row.hidden = !hit || (part && row.dataset.part !== part.value);
    }
  };
  find.oninput = choose;
  if (part) part.onchange = choose;
  choose();
}
