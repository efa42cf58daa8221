// What Gradio does not do: words that name an action unit show its region on the picture of their
// tab; a frame on the picture chooses its face, and so do the arrow keys; a webcam that is refused
// is said; videos are left as they are.
// Listeners sit on the document, because Gradio replaces the elements again and again.
(() => {
  const tab = (element) => element.closest(".vf-tab");
  const within = (event, selector) => event.target.closest?.(selector);

  const show = (unit, on) => {
    const names = unit.dataset.regions.split(" ");
    for (const region of tab(unit)?.querySelectorAll(".vf-region") || [])
      region.classList.toggle("on", on && names.includes(region.dataset.region));
  };
  for (const [name, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]])
    document.addEventListener(name, (event) => {
      const unit = within(event, "[data-regions]");
      if (unit) show(unit, on);
    });

  document.addEventListener("click", (event) => {
    const unit = within(event, "[data-regions]");
    if (unit) show(unit, true);
    const face = within(event, "[data-face]");
    const choices = face && tab(face)?.querySelectorAll(".vf-choice input[type=radio]");
    choices?.[Number(face.dataset.face)]?.click();
    if (within(event, '[aria-label="Capture from camera"]') && !navigator.mediaDevices)
      say("A browser gives the webcam only to pages of this machine or over https.");
  });

  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  document.addEventListener("keydown", (event) => {
    const choice = within(event, ".vf-choice input[type=radio]");
    if (!choice || !steps[event.key]) return;
    event.preventDefault();
    const all = [...choice.closest(".vf-choice").querySelectorAll("input[type=radio]")];
    const next = all[(all.indexOf(choice) + steps[event.key] + all.length) % all.length];
    next.focus();
    next.click();
  });

  const say = (words) => {
    for (const old of document.querySelectorAll(".vf-camera")) old.remove();
    const field = [...document.querySelectorAll(".vf-upload")].find((one) => one.offsetParent);
    if (!words || !field) return;
    const line = document.createElement("div");
    line.className = "vf-problem vf-camera";
    line.setAttribute("role", "alert");
    line.textContent = words;
    field.before(line);
  };
  // Gradio's field for videos would load 30 MB of ffmpeg into the browser, to cut videos with; the
  // server's own headers forbid that, and its failure would be shown as an error.
  const fetched = window.fetch.bind(window);
  window.fetch = (asked, ...rest) =>
    /\/static\/ffmpeg\//.test(asked.url || asked) ? new Promise(() => {}) : fetched(asked, ...rest);
  // Nor is it an error that a browser cannot play what the model is shown.
  document.addEventListener("error", (event) => {
    if (event.target.matches?.(".vf-clip video")) event.stopImmediatePropagation();
  }, true);

  const reasons = {
    NotAllowedError: "The browser does not let this page use the webcam: allow it in the browser's settings for this page, or upload a file.",
    NotFoundError: "No webcam was found: connect one, or upload a file.",
    NotReadableError: "The webcam is in use by another program: close that, or upload a file.",
  };
  const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
  if (ask)
    navigator.mediaDevices.getUserMedia = (wanted) => ask(wanted).then(
      (stream) => (say(""), stream),
      (error) => { say(reasons[error.name] || `The webcam cannot be used (${error.message}).`); throw error; },
    );
})();
