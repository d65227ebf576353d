// What is shown, in CSS pixels and in the ratios of WCAG 2.1: sizes, places, contrasts. Returns plain values.
const width = document.documentElement.clientWidth;

const channel = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const parsed = colour => {
  const [r, g, b, a = 1] = (colour.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number); // "none" is transparent
  return {light: 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255), a};
};
const contrast = (one, other) => {
  const [a, b] = [parsed(one).light, parsed(other).light].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const behind = element => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (parsed(colour).a > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const shown = element => element.checkVisibility() && element.getClientRects().length > 0;
const style = (element, name) => getComputedStyle(element)[name];

// What lies under a text of a picture: the cell or the marked line that it stands in, else the page.
const under = text => {
  const at = text.getBoundingClientRect();
  const middle = {x: at.x + at.width / 2, y: at.y + at.height / 2};
  const rects = [...text.ownerSVGElement.querySelectorAll("rect")].filter(rect => {
    const box = rect.getBoundingClientRect();
    return box.left <= middle.x && middle.x <= box.right && box.top <= middle.y && middle.y <= box.bottom;
  });
  const last = rects.at(-1);
  return last && style(last, "fill") !== "none" ? style(last, "fill") : behind(text.ownerSVGElement);
};

const withText = [...document.body.querySelectorAll("*")].filter(each =>
  !(each instanceof SVGElement) && shown(each)
  && [...each.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
const svgTexts = [...document.querySelectorAll("svg text")].filter(text => shown(text) && text.textContent.trim());

const overflowing = [...document.body.querySelectorAll("*")].filter(each =>
  shown(each) && !each.closest(".scroll") && !each.closest(".defs") && each.getBoundingClientRect().right > width + 0.5);

const labelled = [...document.querySelectorAll(".chart")].filter(shown).map(chart => {
  const [labels, area] = chart.querySelectorAll("svg");
  const texts = [...labels.querySelectorAll("text")].map(text => text.getBoundingClientRect().right);
  const ticks = [...area.querySelectorAll("text.tick")].filter(shown).map(text => text.getBoundingClientRect())
    .sort((a, b) => a.left - b.left);
  return {
    intoArea: Math.max(0, ...texts) - area.getBoundingClientRect().left,
    tickGap: Math.min(99, ...ticks.slice(1).map((box, index) => box.left - ticks[index].right)),
    outside: [...area.querySelectorAll("use, rect, text")].filter(each => {
      const box = each.getBoundingClientRect();
      return box.width && (box.left < 0 || box.right > width + 0.5);
    }).length,
    cellText: Math.max(0, ...[...area.querySelectorAll("rect.cell + text")].map(text =>
      text.getBoundingClientRect().width - text.previousElementSibling.getBoundingClientRect().width)),
  };
});

const mark = (selector, name) => {
  const element = document.querySelector(`.defs ${selector}`);
  return contrast(style(element, name), behind(document.body));
};
const heading = document.querySelector("h1");
return {
  width,
  scrollWidth: document.documentElement.scrollWidth,
  overflowing: overflowing.map(each => each.outerHTML.slice(0, 120)),
  heading: heading.textContent.trim(),
  headingBottom: heading.getBoundingClientRect().bottom,
  headingTop: heading.getBoundingClientRect().top,
  levels: [...document.querySelectorAll("h1, h2, h3, h4")].map(each => Number(each.tagName[1])),
  scripts: document.scripts.length,
  handlers: [...document.querySelectorAll("*")].flatMap(each => each.getAttributeNames())
    .filter(name => name.startsWith("on")).length,
  background: parsed(behind(document.body)).light,
  ink: parsed(style(document.body, "color")).light,
  text: withText.map(each => ({
    told: each.textContent.trim().slice(0, 40),
    contrast: contrast(style(each, "color"), behind(each)),
    size: parseFloat(style(each, "fontSize")),
  })),
  svgText: svgTexts.map(text => ({
    told: text.textContent,
    contrast: contrast(style(text, "fill"), under(text)),
    size: parseFloat(style(text, "fontSize")) * text.getScreenCTM().a,
  })),
  charts: labelled,
  marks: {
    accumulated: mark("#a", "stroke"), introduced: mark("#i", "stroke"), residual: mark("#r", "fill"),
    floor: mark("#f", "stroke"), wrong: mark("#gs", "fill"), inherits: mark("#gi", "fill"), right: mark("#gr", "fill"),
  },
  openDetails: [...document.querySelectorAll("details.print table, details.print .chart")]
    .map(each => each.getBoundingClientRect().height),
};
