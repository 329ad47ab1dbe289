//! Compares the generated documents in `docs/` with the code, and holds the code to its own rules; and what unit tests
//! of several modules share.

mod file_graph;
mod log_lines;
mod module_graph;
mod type_names;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use hyper::{HeaderMap, Response, StatusCode};

/// Compares a document with its file. With `LOTA_WRITE_DOCS` in the environment, writes the file first, as `cargo
/// xtask docs` does.
pub(crate) fn check(file: &str, document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    if env::var_os("LOTA_WRITE_DOCS").is_some() {
        fs::write(&path, document).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == document, "docs/{file} is out of date: run `cargo xtask docs`");
}

/// Returns the status and the headers of a response.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    let answer = Response::builder().status(status);
    let answer = headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value));
    let (parts, ()) = answer.body(()).unwrap().into_parts();
    (parts.status, parts.headers)
}

/// Parses the sources under `place`, except those of tests.
fn sources(place: &Path) -> Vec<(PathBuf, syn::File)> {
    if place.is_dir() {
        let entries = fs::read_dir(place).unwrap();
        return entries.flat_map(|entry| sources(&entry.unwrap().path())).collect();
    }
    let name = place.file_name().unwrap().to_string_lossy();
    if !name.ends_with(".rs") || name.ends_with("tests.rs") {
        return Vec::new();
    }
    vec![(place.to_owned(), syn::parse_file(&fs::read_to_string(place).unwrap()).unwrap())]
}
