//! The Kustomize files equal the rendered chart.

use std::{collections::BTreeMap, fs};

use lota_daemon::config::Config;
use serde_json::{Value, json};

use crate::render::{container, deploy, helm, kustomize, lota_toml, objects, one};

const HEADER: &str = "# Rendered from deploy/chart by `cargo xtask deploy-render`.\n";
const BASE: [&str; 2] = ["--values", "deploy/base/values.yaml"];
const OVERLAYS: [&str; 4] = ["veth", "bridge", "sk-lookup", "coredns"];
const COMPONENTS: [(&str, &str); 4] = [
    ("podmonitor", "podMonitor"),
    ("servicemonitor", "serviceMonitor"),
    ("prometheusrule", "prometheusRule"),
    ("coredns", "coreDNS"),
];

/// Returns objects by kind, namespace and name. Removes the hash that Kustomize appends to a ConfigMap's name.
fn by_name(objects: &[Value]) -> BTreeMap<String, Value> {
    let generated = generated_name(objects);
    let text = json!(objects).to_string().replace(&format!("\"{generated}\""), "\"lota\"");
    let objects: Vec<Value> = serde_json::from_str(&text).expect("JSON, still");
    let name = |object: &Value| {
        let of = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        format!("{} {}/{}", object["kind"], of("namespace"), of("name"))
    };
    let count = objects.len();
    let named: BTreeMap<String, Value> = objects.into_iter().map(|object| (name(&object), object)).collect();
    assert_eq!(named.len(), count, "duplicate object");
    named
}

/// Returns the ConfigMap's name.
fn generated_name(objects: &[Value]) -> String {
    let map = objects.iter().find(|object| object["data"]["lota.toml"].is_string()).expect("a ConfigMap");
    map["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// Returns the chart's objects with these arguments besides those of `base`, and lota.toml with the file's header.
fn of_chart(arguments: &[&str]) -> BTreeMap<String, Value> {
    let mut objects = objects(helm(&[&BASE, arguments].concat()));
    for object in &mut objects {
        if let Some(toml) = object["data"]["lota.toml"].as_str() {
            object["data"]["lota.toml"] = json!(format!("{HEADER}{toml}"));
        }
    }
    by_name(&objects)
}

#[track_caller]
fn assert_same(ours: &BTreeMap<String, Value>, charts: &BTreeMap<String, Value>) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), charts.keys().collect::<Vec<_>>());
    for (name, object) in ours {
        assert_eq!(json!(object), charts[name], "{name}");
    }
}

#[test]
fn base_equals_the_chart_with_its_defaults() {
    for folder in ["deploy", "deploy/base"] {
        assert_same(&by_name(&objects(kustomize(folder))), &of_chart(&[]));
    }
}

#[test]
fn the_uninstall_patch_matches_the_daemonset() {
    let patch = fs::read_to_string(deploy("uninstall.json")).expect("deploy/uninstall.json");
    let patch: Vec<Value> = serde_json::from_str(&patch).expect("a JSON patch");
    for folder in ["deploy", "deploy/hardened"] {
        let objects = objects(kustomize(folder));
        for operation in &patch {
            let path = operation["path"].as_str().expect("a path");
            assert!(one(&objects, "DaemonSet").pointer(path).is_some(), "{folder} has no {path}");
        }
    }
    let config = container(&objects(kustomize("deploy")))["command"][3].clone();
    assert_eq!(patch[1]["value"], json!(["lota", "uninstall", "--wait", "--config", config]));
}

#[test]
fn hardened_equals_the_hardened_chart() {
    assert_same(&by_name(&objects(kustomize("deploy/hardened"))), &of_chart(&["--set", "hardened=true"]));
}

#[test]
fn overlays_equal_the_chart_with_their_values() {
    for overlay in OVERLAYS {
        let values = format!("deploy/overlays/{overlay}/values.yaml");
        let dns = format!("coreDNS.enabled={}", overlay == "coredns");
        let ours = by_name(&objects(kustomize(&format!("deploy/overlays/{overlay}"))));
        assert_same(&ours, &of_chart(&["--values", &values, "--set", &dns]));
    }
    let mut known = OVERLAYS.map(str::to_owned);
    known.sort();
    assert_eq!(names_in("overlays"), known);
}

/// Compares comments, too; the tests above compare objects.
#[test]
fn committed_files_equal_the_rendered_chart() {
    let same = |file: &str, rendered: &str| {
        let committed = fs::read_to_string(deploy(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(committed, format!("{HEADER}{rendered}"), "{file}: run `cargo xtask deploy-render`");
    };
    let rendered = helm(&BASE).unwrap();
    let mut files = vec!["kustomization.yaml".to_owned(), "lota.toml".to_owned(), "values.yaml".to_owned()];
    for part in rendered.split("---\n# Source: lota/templates/").skip(1) {
        let (template, text) = part.split_once('\n').unwrap();
        if template != "configmap.yaml" {
            same(&format!("base/{template}"), text);
            files.push(template.to_owned());
        }
    }
    files.sort();
    assert_eq!(names_in("base"), files);
    let alerts =
        ["monitoring", "chart/files"].map(|folder| fs::read(deploy(folder).join("alerts.yaml")).unwrap());
    assert!(alerts[0] == alerts[1], "chart/files/alerts.yaml: run `cargo xtask deploy-render`");
    for (component, switch) in COMPONENTS {
        let template = format!("{component}.yaml");
        let set = format!("{switch}.enabled=true");
        let rendered = helm(&[&BASE[..], &["--set", &set]].concat()).unwrap();
        let source = format!("---\n# Source: lota/templates/{template}\n");
        let parts = rendered.split(&source).skip(1).map(|part| part.split("---\n# Source").next().unwrap());
        same(&format!("components/{component}/{template}"), &parts.collect::<Vec<_>>().join("---\n"));
    }
}

/// Returns the names of the entries of a folder.
fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(deploy(folder)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The kustomization of deploy/README.md, with every component at once.
#[test]
fn a_custom_kustomization_accepts_all_components() {
    let folder = deploy("").join(format!("../target/own-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let components = ["hardened", "podmonitor", "servicemonitor", "prometheusrule", "coredns", "node-taint"];
    let list: String = components.map(|name| format!("  - ../../deploy/components/{name}\n")).concat();
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../deploy/overlays/bridge]\n\
         components:\n{list}images: [{{ name: lota, newName: registry.example/lota, newTag: 0.1.0 }}]\n\
         configMapGenerator:\n  - name: lota\n    namespace: cw-object-storage\n    behavior: replace\n    \
         files: [lota.toml]\n"
    );
    fs::write(folder.join("kustomization.yaml"), kustomization).unwrap();
    fs::write(folder.join("lota.toml"), "# mine\n").unwrap();
    let rendered = kustomize(folder.to_str().unwrap());
    fs::remove_dir_all(&folder).unwrap();
    let objects = objects(rendered);
    assert_eq!(lota_toml(&objects), "# mine\n");
    assert_eq!(container(&objects)["image"], "registry.example/lota:0.1.0");
    assert_eq!(container(&objects)["securityContext"]["privileged"], false);
    let nodes = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] });
    assert_eq!(one(&objects, "ClusterRole")["rules"][1], nodes);
    one(&objects, "PodMonitor");
    one(&objects, "ServiceMonitor");
    one(&objects, "PrometheusRule");
    let volumes = &one(&objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["projected"]["sources"][0]["configMap"]["name"], generated_name(&objects).as_str());
}

#[test]
fn no_file_contains_a_secret_and_no_pod_starts_without_one() {
    let folders = OVERLAYS.map(|overlay| format!("deploy/overlays/{overlay}"));
    for folder in folders.iter().map(String::as_str).chain(["deploy", "deploy/hardened"]) {
        let objects = objects(kustomize(folder));
        assert!(objects.iter().all(|object| object["kind"] != "Secret"), "{folder}");
        let volumes = &one(&objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"];
        let key = json!({ "secret": {
            "name": "lota-cluster-key", "items": [{ "key": "cluster-secret", "path": "cluster-secret" }]
        }});
        assert_eq!(volumes[0]["projected"]["sources"][1], key);
        // A key of 32 bytes has at least this many characters as text.
        let text = json!(objects).to_string();
        let long = text
            .split(|character: char| !character.is_ascii_alphanumeric() && !"+=".contains(character))
            .find(|text| text.len() >= 32);
        assert_eq!(long, None, "{folder}");
    }
}

#[test]
fn the_daemon_accepts_every_configuration() {
    for folder in
        [""].into_iter().map(str::to_owned).chain(OVERLAYS.map(|overlay| format!("/overlays/{overlay}")))
    {
        let config = read(&lota_toml(&objects(kustomize(&format!("deploy{folder}")))));
        assert_eq!(config.gateway.endpoint.to_string(), "http://gateway.example");
        assert!(!config.datapath.pod_interfaces.is_empty(), "traffic from other interfaces would be refused");
        assert_eq!(config.datapath.bpffs_path.to_str(), Some("/run/bpf/lota"));
        assert_eq!(
            config.datapath.answer_dns,
            !["/overlays/coredns", "/overlays/sk-lookup"].contains(&&*folder)
        );
    }
}

/// Reads a configuration like the daemon, which gets the node's name and address from the environment.
pub(crate) fn read(toml: &str) -> Config {
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let path = deploy("").join(format!("../target/lota-{process}-{thread:?}.toml"));
    fs::write(&path, toml).unwrap();
    let config = Config::read(&path);
    fs::remove_file(&path).unwrap();
    config.unwrap_or_else(|error| panic!("{error}\n{toml}"))
}
