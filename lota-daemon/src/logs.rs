//! What is logged, and how: `LOTA_LOG` is a level or a list of `module=level`; `LOTA_LOG_FORMAT=json` makes each line a
//! JSON object.

use std::env;

use tracing::Metadata;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Begins to log, to standard error.
pub fn init() {
    let wanted = env::var("LOTA_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = wanted.parse::<Targets>().unwrap_or_else(|error| {
        eprintln!("lota: LOTA_LOG is ignored: `{wanted}`: {error}");
        Targets::new().with_default(LevelFilter::INFO)
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match env::var("LOTA_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().flatten_event(true).with_current_span(false).boxed(),
        Ok("text") | Err(_) => lines.with_target(false).boxed(),
        Ok(other) => {
            eprintln!("lota: LOTA_LOG_FORMAT is ignored: `{other}` is neither `text` nor `json`");
            lines.with_target(false).boxed()
        }
    };
    tracing_subscriber::registry().with(lines).with(filter).with(filter_fn(is_harmless)).init();
}

/// What signs requests shows them whole, tokens and customers' keys among their headers; whatever `LOTA_LOG` says. What
/// asks the API server says each failure as an error of its own, which is said once already.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let (signs, asks) = (metadata.target().starts_with("aws_"), metadata.target().starts_with("kube_client"));
    !asks && (!signs || *metadata.level() <= LevelFilter::INFO)
}
