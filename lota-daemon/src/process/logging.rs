//! Logging: `LOTA_LOG` is a level or a list of `module=level`; `LOTA_LOG_FORMAT=json` makes each line a JSON object.
//!
//! Events contain text from outside (keys, headers, errors). [`LineWriter`] and [`fields`] ensure that each event is
//! one line of plain text, and that each value of a text line is one value.

use std::{
    env,
    io::{self, Write},
};

use tracing::{Metadata, field::Field};
use tracing_subscriber::{
    Layer as _,
    field::MakeExt as _,
    filter::{LevelFilter, Targets, filter_fn},
    fmt::{FormatFields, format, format::Writer},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::process::escape::{plain, plain_json, value};

/// Initializes logging to standard error.
pub fn init() {
    let directives = env::var("LOTA_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = directives.parse::<Targets>().unwrap_or_else(|error| {
        eprintln!("lota: LOTA_LOG is ignored: `{directives}`: {error}");
        Targets::new().with_default(LevelFilter::INFO)
    });
    let text = || tracing_subscriber::fmt::layer().with_target(false).fmt_fields(fields());
    let text = || text().with_writer(|| LineWriter { to: io::stderr(), escape: plain }).boxed();
    let lines = match env::var("LOTA_LOG_FORMAT").as_deref() {
        Ok("json") => {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            lines.with_writer(|| LineWriter { to: io::stderr(), escape: plain_json }).boxed()
        }
        Ok("text") | Err(_) => text(),
        Ok(other) => {
            eprintln!("lota: LOTA_LOG_FORMAT is ignored: `{other}` is neither `text` nor `json`");
            text()
        }
    };
    tracing_subscriber::registry().with(lines).with(filter).with(filter_fn(is_loggable)).init();
}

/// Writes each event as one line without control characters.
struct LineWriter<W> {
    to: W,
    escape: fn(&str) -> String,
}

impl<W: Write> Write for LineWriter<W> {
    /// Writes a whole event; the subscriber passes it in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = (self.escape)(text.strip_suffix('\n').unwrap_or(&text));
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Formats the fields of a text line: the message as it is, then `name=value`.
fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    let field = |to: &mut Writer<'_>, field: &Field, debug: &dyn std::fmt::Debug| match field.name() {
        "message" => write!(to, "{debug:?}"),
        name => write!(to, "{name}={}", value(&format!("{debug:?}"))),
    };
    format::debug_fn(field).delimited(" ")
}

/// Returns whether an event may be logged, whatever `LOTA_LOG` says. The signing libraries log whole requests at
/// debug level, with tokens and customers' keys. The Kubernetes client logs each failure as an error, which LOTA logs
/// itself.
fn is_loggable(metadata: &Metadata<'_>) -> bool {
    let (signs, asks) = (metadata.target().starts_with("aws_"), metadata.target().starts_with("kube_client"));
    !asks && (!signs || *metadata.level() <= LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::Registry;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the log of an event with control characters in its values.
    fn logged(
        layer: impl FnOnce(Memory) -> Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync>,
    ) -> String {
        let memory = Memory::default();
        let subscriber = tracing_subscriber::registry().with(layer(memory.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let key = "k\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\u{9b}";
            tracing::warn!(object = %format_args!("b/{key}"), key, count = 3, error = %"a level=x", "odd {key}");
        });
        let logged = memory.0.lock().unwrap().clone();
        String::from_utf8(logged).unwrap()
    }

    #[test]
    fn a_key_cannot_forge_a_line_or_a_value() {
        let text = logged(|to| {
            let lines =
                tracing_subscriber::fmt::layer().with_target(false).without_time().fmt_fields(fields());
            lines.with_writer(move || LineWriter { to: to.clone(), escape: plain }).boxed()
        });
        assert_eq!(
            text,
            " WARN odd k\\n2026-01-01T00:00:00Z ERROR forged\\u{1b}[2J\\u{9b} \
             object=\"b/k\\n2026-01-01T00:00:00Z ERROR forged\\u{1b}[2J\\u{9b}\" \
             key=\"k\\n2026-01-01T00:00:00Z ERROR forged\\u{1b}[2J\\u{9b}\" count=3 error=\"a level=x\"\n"
        );
        let json = logged(|to| {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
            lines.with_writer(move || LineWriter { to: to.clone(), escape: plain_json }).boxed()
        });
        assert!(json.lines().count() == 1 && !json.trim_end().contains(char::is_control), "{json}");
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(line["key"], "k\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\u{9b}");
    }
}
