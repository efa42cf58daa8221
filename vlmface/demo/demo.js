// Words that name an action unit show its region on the picture of their tab; a box on the picture
// chooses its face. One listener for all: Gradio replaces the elements again and again.
(() => {
  const tab = (element) => element.closest(".vf-tab");
  const show = (button, on) => {
    const names = (button.dataset.regions || "").split(" ");
    for (const region of tab(button)?.querySelectorAll(".vf-region") || [])
      region.classList.toggle("on", on && names.includes(region.dataset.region));
  };
  const unit = (event) => event.target.closest?.("[data-regions]");

  for (const [name, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]])
    document.addEventListener(name, (event) => { const button = unit(event); if (button) show(button, on); });
  document.addEventListener("click", (event) => {
    const button = unit(event);
    if (button) return show(button, true);
    const box = event.target.closest?.("[data-face]");
    if (box) tab(box)?.querySelectorAll(".vf-choice input[type=radio]")[Number(box.dataset.face)]?.click();
  });
})();
