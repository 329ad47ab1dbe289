//! Renders the Kustomize side of `deploy/` from the chart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{kubernetes, process::ROOT};

/// Overlays with their own `lota.toml`, which their `values.yaml` determines.
const OVERLAYS: [&str; 4] = ["veth", "bridge", "sk-lookup", "coredns"];
/// Components whose objects the chart renders with a value enabled.
const COMPONENTS: [(&str, &str); 4] = [
    ("podmonitor", "podMonitor"),
    ("servicemonitor", "serviceMonitor"),
    ("prometheusrule", "prometheusRule"),
    ("coredns", "coreDNS"),
];
const HEADER: &str = "# Rendered from deploy/chart by `cargo xtask deploy-render`.\n";

/// Renders all files again.
pub(crate) fn render() -> Result<(), String> {
    let helm = kubernetes::clients()?.helm;
    let deploy = Path::new(ROOT).join("deploy");
    // A chart can only read files in its own folder.
    let alerts = deploy.join("monitoring/alerts.yaml");
    let text = fs::read_to_string(&alerts).map_err(|error| format!("{}: {error}", alerts.display()))?;
    let copy = deploy.join("chart/files/alerts.yaml");
    fs::write(&copy, text).map_err(|error| format!("{}: {error}", copy.display()))?;
    for (template, text) in templates(&helm, &[])? {
        match lota_toml(&text) {
            Some(toml) => write(&deploy.join("base/lota.toml"), &toml)?,
            None => write(&deploy.join("base").join(template), &text)?,
        }
    }
    for overlay in OVERLAYS {
        let folder = format!("overlays/{overlay}");
        let found = templates(&helm, &["--values", &format!("deploy/{folder}/values.yaml")])?;
        let toml = found.iter().find_map(|(_, text)| lota_toml(text));
        let toml = toml.ok_or_else(|| format!("{folder}: the chart renders no lota.toml"))?;
        write(&deploy.join(folder).join("lota.toml"), &toml)?;
    }
    for (component, switch) in COMPONENTS {
        let template = format!("{component}.yaml");
        let found = templates(&helm, &["--set", &format!("{switch}.enabled=true")])?;
        let parts: Vec<String> =
            found.into_iter().filter(|(name, _)| *name == template).map(|(_, text)| text).collect();
        write(&deploy.join("components").join(component).join(&template), &parts.join("---\n"))?;
    }
    Ok(())
}

/// Returns what each template of the chart renders to with the values of `base` and these arguments, one object each.
fn templates(helm: &Path, arguments: &[&str]) -> Result<Vec<(String, String)>, String> {
    let mut command = Command::new(helm);
    command.current_dir(ROOT).args(["template", "lota", "deploy/chart", "--namespace", "cw-object-storage"]);
    command.args(["--values", "deploy/base/values.yaml"]).args(arguments);
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let parts = text.split("---\n# Source: lota/templates/").skip(1);
    Ok(parts
        .filter_map(|part| part.split_once('\n'))
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect())
}

/// Returns the `lota.toml` of a ConfigMap.
fn lota_toml(text: &str) -> Option<String> {
    let (_, toml) = text.split_once("  lota.toml: |\n")?;
    Some(
        toml.lines()
            .map(|line| line.strip_prefix("    ").unwrap_or(""))
            .fold(String::new(), |all, line| all + line + "\n"),
    )
}

fn write(path: &PathBuf, text: &str) -> Result<(), String> {
    fs::write(path, format!("{HEADER}{text}")).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
