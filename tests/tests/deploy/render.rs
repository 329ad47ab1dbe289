//! Runs helm and kubectl, and parses their output.

use std::{
    env,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

/// Root folder of the checkout.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Arguments that every rendering needs.
pub(crate) const GATEWAY: [&str; 2] = ["--set-json", "config.gateway.endpoint=\"http://s3.internal:9000\""];

/// Returns the path of a folder or file in `deploy/`.
pub(crate) fn deploy(path: &str) -> PathBuf {
    PathBuf::from(ROOT).join("deploy").join(path)
}

/// Returns the program that an environment variable names.
pub(crate) fn tool(variable: &str) -> Command {
    let path =
        env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: `cargo xtask test deploy`"));
    let mut command = Command::new(path);
    command.current_dir(ROOT);
    command
}

/// Returns what the chart renders to with these arguments, or the error.
pub(crate) fn helm(arguments: &[&str]) -> Result<String, String> {
    let mut helm = tool("LOTA_HELM");
    output(
        helm.args(["template", "lota", "deploy/chart", "--namespace", "cw-object-storage"]).args(arguments),
    )
}

/// Returns what a folder with a kustomization renders to, or the error.
pub(crate) fn kustomize(folder: &str) -> Result<String, String> {
    output(tool("LOTA_KUBECTL").args(["kustomize", folder]))
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).expect("YAML is UTF-8")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Returns the objects of a rendering, after validating them against Kubernetes' schemas.
///
/// # Panics
/// If an object is invalid.
pub(crate) fn objects(rendered: Result<String, String>) -> Vec<Value> {
    let (objects, errors) = validate(&rendered.unwrap_or_else(|error| panic!("{error}")));
    assert!(errors.is_empty(), "{errors:#?}");
    objects
}

/// Returns the objects and their errors.
pub(crate) fn validate(yaml: &str) -> (Vec<Value>, Vec<String>) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/objects.py");
    let mut python = tool("LOTA_PYTHON");
    let mut child =
        python.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    child.stdin.take().expect("a pipe").write_all(yaml.as_bytes()).expect("it reads all of it");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the validation failed for:\n{yaml}");
    let mut result: Value = serde_json::from_slice(&output.stdout).expect("it writes JSON");
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    let errors = list(result["errors"].take());
    let errors = errors.iter().map(|error| error.as_str().unwrap_or_default().to_owned());
    (list(result["objects"].take()), errors.collect())
}

/// Returns the only object of this kind.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "there is more than one {kind}");
    first
}

/// Returns the DaemonSet's container.
pub(crate) fn container(objects: &[Value]) -> &Value {
    let containers = &one(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    &containers[0]
}

/// Returns the daemon's configuration from the ConfigMap.
pub(crate) fn lota_toml(objects: &[Value]) -> String {
    let found = objects.iter().find_map(|object| object["data"]["lota.toml"].as_str());
    found.expect("a ConfigMap with lota.toml").to_owned()
}
