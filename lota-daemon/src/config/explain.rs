//! Explanations of TOML errors.

/// Returns line, column and message of a TOML error; for an unknown key or value, also the closest known one.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let place = error.span().map(|span| {
        let before = &text[..span.start.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("line {line}, column {column}: ")
    });
    let hint = nearest(message).map(|name| format!("; did you mean `{name}`?"));
    format!("{}{message}{}", place.unwrap_or_default(), hint.unwrap_or_default())
}

/// Returns the closest of the expected names in serde's message "unknown field `a`, expected one of `b`, `c`". `toml` keeps
/// the names only in this text; `an_unknown_key_is_reported_with_its_line_and_the_closest_key` fails if it changes.
fn nearest(message: &str) -> Option<&str> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
