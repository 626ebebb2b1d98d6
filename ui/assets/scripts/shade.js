/* A figure in the light or dark mode: with the template of the mode and, in the dark one, the grays and
   the blue of its traces exchanged for their dark counterparts. Pages and stories draw with it. */
window.slimscopeShade = (figure, templates, dark, css) => {
  const pairs = {
    "#FFFFFF": "--paper",
    "#F7F8FA": "--panel",
    "#E3E6EB": "--line",
    "#14181F": "--text",
    "#5B6472": "--muted",
    "#0072B2": "--blue",
  };
  let text = JSON.stringify(figure);
  if (dark)
    for (const [light, name] of Object.entries(pairs))
      text = text.replaceAll(light, css.getPropertyValue(name).trim());
  /** @type {PlotlyFigure} */
  const shaded = JSON.parse(text);
  return { ...shaded, layout: { ...shaded.layout, template: templates[dark ? "dark" : "light"] } };
};
