use std::{fs, path::PathBuf};

use lota_s3::Origin;

use super::*;

/// Returns the results for a configuration, and the number of failures.
async fn check_config(folder: &Path, config: &str) -> (Vec<Finding>, usize) {
    let file: PathBuf = folder.join("lota.toml");
    fs::write(&file, config).unwrap();
    let mut lines = Vec::new();
    let failures = run(&file, |line| lines.push(line.clone())).await;
    (lines, failures)
}

fn config(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "[node]\nname = \"n1\"\naddress = \"127.0.0.1\"\n[gateway]\nendpoint = \"http://gateway.example\"\n[cache]\n\
         folder = \"{folder}/cache\"\ncapacity = \"1MiB\"\nmin_free = \"0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         socket = \"{folder}/admin.sock\"\n{more}"
    )
}

#[tokio::test]
async fn an_invalid_file_is_the_only_result() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, failures) = check_config(folder.path(), "[gatway]").await;
    assert_eq!((lines.len(), failures, lines[0].level), (1, 1, Level::Fail));
    assert!(lines[0].what.contains("did you mean `gateway`?"), "{}", lines[0]);
}

#[tokio::test]
async fn placeholders_and_readable_secrets_are_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let credential = folder.path().join("credential.toml");
    fs::write(&credential, "access_key = \"AK\"\nsecret_key = \"hunter2\"\n").unwrap();
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o644)).unwrap();
    let more = format!(
        "[backend]\nendpoints = [\"http://127.0.0.1:1\"]\ncredential_file = \"{}\"\n",
        credential.display()
    );
    let (lines, failures) = check_config(folder.path(), &config(folder.path(), &more)).await;
    let find =
        |text: &str| lines.iter().find(|line| line.what.contains(text)).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(find("is a placeholder").level, Level::Fail);
    assert_eq!(find("every user of this machine").level, Level::Warn);
    assert_eq!(find("http://127.0.0.1:1 cannot be reached").level, Level::Fail);
    assert_eq!(find("1.0 MiB of 1.0 MiB").level, Level::Ok);
    assert_eq!(failures, lines.iter().filter(|line| line.level == Level::Fail).count());
    let all: String = lines.iter().map(ToString::to_string).collect();
    assert!(all.contains("AK") && !all.contains("hunter2"), "{all}");
}

#[tokio::test]
async fn pins_that_cannot_be_read_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = lota_cache::pins_file(&folder.path().join("cache"));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let pin = "{\"bucket\": \"b\", \"prefix\": \"k\", \"bytes\": 1024, \"changed\": 1}";
    for (version, level, what) in
        [(1, Level::Ok, "1 pin of 1.0 KiB"), (2, Level::Warn, "another version of LOTA")]
    {
        fs::write(&file, format!("{{\"version\": {version}, \"pins\": [{pin}]}}")).unwrap();
        let (lines, _) = check_config(folder.path(), &config(folder.path(), "")).await;
        let found = lines.iter().find(|line| line.what.contains(what));
        assert_eq!(found.map(|line| line.level), Some(level), "{what}: {lines:?}");
    }
}

#[tokio::test]
async fn a_gateway_without_backend_fetches_nothing_after_writes() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[backend]\nendpoints = [\"http://127.0.0.1:1\"]\ncredential_file = \"/none\"\n\
                [gateways.cloud]\nendpoint = \"http://127.0.0.1:2\"\nnames = [\"s3.test\"]\n";
    for (mode, is_reported) in [("fetch", true), ("keep", true), ("off", false)] {
        let mode = format!("[cache]\nafter_write = \"{mode}\"");
        let config = config(folder.path(), more).replace("[cache]", &mode);
        let (lines, _) = check_config(folder.path(), &config).await;
        let about = |line: &&Finding| line.what.contains("cache.after_write");
        let parts: Vec<_> = lines.iter().filter(about).map(|line| (&*line.part, line.level)).collect();
        let expected = is_reported.then_some(("backends.cloud", Level::Warn));
        assert_eq!(parts, expected.into_iter().collect::<Vec<_>>(), "{mode}");
    }
}

#[tokio::test]
async fn a_full_cache_without_room_for_uploads_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let backend = "[backend]\nendpoints = [\"http://127.0.0.1:1\"]\ncredential_file = \"/none\"\n";
    for (mode, low, is_reported) in [("keep", 98, true), ("keep", 97, false), ("fetch", 98, false)] {
        let cache = format!("[cache]\nafter_write = \"{mode}\"\nlow_percent = {low}\nhigh_percent = 98");
        let config = config(folder.path(), backend).replace("[cache]", &cache);
        let (lines, _) = check_config(folder.path(), &config).await;
        let found = lines.iter().any(|line| line.what.contains("no room for uploads"));
        assert_eq!(found, is_reported, "{mode} {low}");
    }
}

#[test]
fn a_line_names_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lota.toml");
    fs::write(&file, config(folder.path(), "")).unwrap();
    assert_eq!(node_name(&file), "n1");
    assert!(!node_name(Path::new("/nonexistent")).is_empty());
    let finding = Finding { part: "rules".to_owned(), level: Level::Ok, what: "none".to_owned(), fix: None };
    let line: serde_json::Value = serde_json::from_str(&json_line("n1", &finding)).unwrap();
    let expected = serde_json::json!(
        {"node": "n1", "part": "rules", "level": "ok", "what": "none", "fix": null}
    );
    assert_eq!(line, expected);
}

#[test]
fn reserved_names_are_placeholders() {
    let is = |text: &str| server::is_placeholder(&Origin::parse(text).unwrap());
    for text in ["http://gateway.example", "https://S3.example.com:9000", "http://example.org"] {
        assert!(is(text), "{text}");
    }
    for text in ["http://10.0.0.1:9000", "http://s3.internal", "http://myexample.com"] {
        assert!(!is(text), "{text}");
    }
}
