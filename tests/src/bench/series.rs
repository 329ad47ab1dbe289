//! Plot of figures over time: a panel for each figure.

use std::fmt::Write as _;

use super::plot::escape;

const WIDTH: f64 = 760.0;
/// Height of a panel, with its title.
const PANEL: f64 = 110.0;
const TOP: f64 = 30.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 100.0;
const COLORS: [&str; 4] = ["#1f77b4", "#d9822b", "#2f9e62", "#9467bd"];

/// A panel of a plot.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Title, with the unit.
    pub title: String,
    /// Lines with their names; one value for each time.
    pub lines: Vec<(String, Vec<f64>)>,
}

/// Returns an SVG of panels above each other, whose common axis is the time in minutes.
#[must_use]
pub fn series(title: &str, minutes: &[f64], panels: &[Panel]) -> String {
    let height = TOP + PANEL * panels.len() as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"11\" role=\"img\" aria-label=\"{0}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-weight=\"bold\">{0}</text>\n",
        escape(title)
    );
    let last = minutes.last().copied().unwrap_or_default().max(f64::MIN_POSITIVE);
    let across = |minute: f64| LEFT + minute / last * (WIDTH - LEFT - RIGHT);
    for (place, panel) in panels.iter().enumerate() {
        let top = TOP + PANEL * place as f64;
        let (upper, lower) = (top + 18.0, top + PANEL - 8.0);
        let values = panel.lines.iter().flat_map(|(_, values)| values).filter(|value| value.is_finite());
        let largest = values.copied().fold(f64::MIN_POSITIVE, f64::max);
        let down = |value: f64| lower - value / largest * (lower - upper);
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{0}\">{1}</text>\n\
             <path d=\"M{LEFT} {upper}V{lower}H{4}\" fill=\"none\" stroke=\"#888\"/>\n\
             <text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{largest:.1}</text>\n\
             <text x=\"{2}\" y=\"{lower}\" text-anchor=\"end\">0</text>",
            top + 12.0,
            escape(&panel.title),
            LEFT - 6.0,
            upper + 8.0,
            WIDTH - RIGHT,
        );
        for (number, (name, values)) in panel.lines.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            let points = minutes.iter().zip(values).filter(|(_, value)| value.is_finite());
            let points = points.map(|(minute, value)| format!("{:.1},{:.1}", across(*minute), down(*value)));
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>\n\
                 <text x=\"{}\" y=\"{}\" fill=\"{color}\">{}</text>",
                points.collect::<Vec<_>>().join(" "),
                WIDTH - RIGHT + 8.0,
                upper + 10.0 + 14.0 * number as f64,
                escape(name),
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0}\">0</text>\n\
         <text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">{last:.1} minutes</text>\n</svg>",
        height - 14.0,
        WIDTH - RIGHT,
    );
    svg
}
