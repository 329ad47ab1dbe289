//! Plot of a report: a bar for each result, with its spread and goal.

use std::fmt::Write as _;

use super::{Goal, Row};

const ROW: usize = 22;
const LABELS: usize = 430;
const BARS: usize = 420;
const WIDTH: usize = LABELS + BARS + 110;

/// Returns an SVG. Results of one unit share a scale.
pub(super) fn svg(title: &str, rows: &[Row]) -> String {
    let height = ROW * (rows.len() + 2);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for (place, row) in rows.iter().enumerate() {
        let same = rows.iter().filter(|other| other.unit == row.unit);
        let largest = same.flat_map(|other| [Some(other.spread[1]), other.goal.bound()]).flatten();
        let largest = largest.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
        let at = |value: f64| value.max(0.0) / largest * BARS as f64 + LABELS as f64;
        let top = ROW * (place + 1) + 8;
        let (middle, text) = (top + 7, top + 11);
        let color = match (row.goal, row.holds) {
            (Goal::None, _) => "#9aa5b1",
            (_, true) => "#2f9e62",
            (_, false) => "#d9822b",
        };
        let end = at(row.value);
        let [least, greatest] = row.spread.map(at);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\"/>\n\
             <path d=\"M{least:.1} {middle}H{greatest:.1}\" stroke=\"#333\"/>\n\
             <text x=\"{}\" y=\"{text}\">{:.2} {}</text>",
            LABELS - 6,
            escape(&row.what),
            end - LABELS as f64,
            LABELS + BARS + 6,
            row.value,
            escape(row.unit),
        );
        if let Some(goal) = row.goal.bound() {
            let goal = at(goal);
            let _ = writeln!(
                svg,
                "<path d=\"M{goal:.1} {}V{}\" stroke=\"#c00\" stroke-width=\"2\"/>",
                top - 3,
                top + 17
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
