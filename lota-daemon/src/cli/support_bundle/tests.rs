use std::io::Read as _;

use flate2::read::GzDecoder;

use super::*;

#[test]
fn the_configuration_keeps_paths_but_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lota.toml");
    fs::write(
        &path,
        "# old secret: x\n[peers]\nsecret_file = \"/etc/s\"\nport = 1\n[a]\nb = [{ secret_key = \"y\", tokens = [\"y\"] }]",
    )
    .unwrap();
    let text = configuration(&path).unwrap();
    assert!(text.contains("secret_file = \"/etc/s\"") && text.contains("(masked)"), "{text}");
    assert!(!text.contains("old secret") && !text.contains("\"y\""), "{text}");
    fs::write(&path, "secret = ").unwrap();
    assert!(!format!("{:#}", configuration(&path).unwrap_err()).contains("secret"));
}

#[test]
fn the_manifest_lists_files_and_failures() {
    let mut bundle = Bundle { parts: Vec::new(), secrets: vec!["hush".into()] };
    bundle.add("one.txt", "the first", Ok("hush, one".into()));
    bundle.add("two.txt", "the second", Err(anyhow::anyhow!("no hush")));
    let mut written = Vec::new();
    bundle.write(&mut written).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(&*written));
    let mut files = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    assert_eq!(files["lota-support/one.txt"], "(masked), one");
    let manifest = &files["lota-support/MANIFEST"];
    assert!(manifest.contains("one.txt                  13  the first\n"), "{manifest}");
    assert!(manifest.contains("two.txt                none  the second: no (masked)\n"), "{manifest}");
    assert_eq!(files.len(), 2);
}
