//! The check of every node before an installation.

use std::{env, fs, os::unix::fs::PermissionsExt as _, process::Command};

use serde_json::{Value, json};

use crate::render::{GATEWAY, ROOT, helm, kustomize, lota_toml, objects, one};

/// Returns the objects of the chart's preflight with these arguments.
fn preflight(arguments: &[&str]) -> Vec<Value> {
    let enabled = ["--set-json", "preflight.enabled=true"];
    objects(helm(&[&GATEWAY[..], &enabled, arguments].concat()))
}

fn pod(objects: &[Value]) -> &Value {
    &one(objects, "DaemonSet")["spec"]["template"]["spec"]
}

#[test]
fn only_what_the_check_needs_is_rendered() {
    let everything = [
        "--set-json",
        "podMonitor.enabled=true",
        "--set-json",
        "serviceMonitor.enabled=true",
        "--set-json",
        "prometheusRule.enabled=true",
        "--set-json",
        "coreDNS.enabled=true",
        // LOTA may run in this namespace already: removing the check must not remove it.
        "--set-json",
        "namespace.create=true",
        "--set-json",
        "resourceQuota.enabled=true",
        "--set-json",
        "nodeTaint.enabled=true",
    ];
    let objects = preflight(&everything);
    let mut kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
            "Role",
            "RoleBinding",
            "Secret",
            "ServiceAccount"
        ]
    );
    let role = &one(&objects, "ClusterRole")["rules"];
    let reads = json!([{ "apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"] }]);
    assert_eq!(role, &reads, "it changes nothing in the cluster");
    assert_eq!(lota_toml(&preflight(&[])), lota_toml(&objects_of_chart()));
}

fn objects_of_chart() -> Vec<Value> {
    objects(helm(&GATEWAY))
}

#[test]
fn the_check_runs_as_the_daemon_would() {
    for hardened in ["hardened=false", "hardened=true"] {
        let (check, daemon) = (preflight(&["--set-json", hardened]), {
            objects(helm(&[&GATEWAY[..], &["--set-json", hardened]].concat()))
        });
        let (checks, daemons) = (pod(&check), pod(&daemon));
        for field in ["hostNetwork", "dnsPolicy", "tolerations", "nodeSelector"] {
            assert_eq!(checks[field], daemons[field], "{field}");
        }
        let (volumes, last) = without_last(&checks["volumes"]);
        assert_eq!((json!(volumes), &last["name"]), (daemons["volumes"].clone(), &json!("token")));
        let (container, daemons) = (&checks["initContainers"][0], &daemons["containers"][0]);
        for field in ["image", "env", "securityContext"] {
            assert_eq!(container[field], daemons[field], "{field}");
        }
        let command = json!(["lota", "check", "--json", "--exit-zero", "/etc/lota/lota.toml"]);
        assert_eq!(container["command"], command);
        assert_eq!(checks["containers"][0]["command"], json!(["lota", "wait"]));
    }
}

fn without_last(list: &Value) -> (&[Value], &Value) {
    let (last, rest) = list.as_array().unwrap().split_last().unwrap();
    (rest, last)
}

/// The check has the daemon's folders, but writes only where the daemon would have its cache. What waits has nothing.
#[test]
fn only_the_check_has_a_token_and_folders() {
    let (check, daemon) = (preflight(&[]), objects_of_chart());
    let (checks, daemons) = (pod(&check), pod(&daemon));
    assert_eq!(checks["automountServiceAccountToken"], false);
    let (mounts, token) = without_last(&checks["initContainers"][0]["volumeMounts"]);
    let path = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(*token, json!({ "name": "token", "mountPath": path, "readOnly": true }));
    let of_daemon = daemons["containers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.len(), of_daemon.len());
    for (mount, of_daemon) in mounts.iter().zip(of_daemon) {
        assert_eq!(mount["mountPath"], of_daemon["mountPath"]);
        let is_cache = mount["name"].as_str().unwrap().starts_with("cache-");
        assert_eq!(mount["readOnly"] == true, !is_cache, "{mount}");
    }
    let wait = &checks["containers"][0];
    assert_eq!((&wait["volumeMounts"], &wait["env"]), (&Value::Null, &Value::Null));
    assert_eq!(wait["securityContext"]["runAsNonRoot"], true);
    assert_eq!(wait["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
}

/// A Service of a running installation must not select the pods of the check: nodes would take them for peers.
#[test]
fn no_service_selects_the_check() {
    let check = preflight(&[]);
    let labels = &one(&check, "DaemonSet")["spec"]["template"]["metadata"]["labels"];
    for normal in [objects_of_chart(), objects(kustomize("deploy"))] {
        let service = one(&normal, "Service")["spec"]["selector"].as_object().unwrap();
        assert!(service.iter().any(|(key, value)| labels[key] != *value), "{labels}");
    }
    let selector = &one(&check, "DaemonSet")["spec"]["selector"]["matchLabels"];
    assert_eq!(selector["app.kubernetes.io/component"], "preflight");
}

/// Returns what is between two texts.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, after) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    after.split_once(to).unwrap_or_else(|| panic!("no {to}")).0
}

/// The documented steps work on a new cluster, and end if a node does not.
#[test]
fn the_documented_steps_begin_with_a_namespace_and_end() {
    let document = fs::read_to_string(format!("{ROOT}/docs/install.md")).unwrap();
    let steps = between(&document, "## Check all nodes first\n", "\n## ");
    let commands: Vec<&str> =
        steps.lines().filter(|line| line.starts_with("kubectl ") || line.starts_with("helm ")).collect();
    for (command, beginning) in
        commands.iter().zip(["kubectl create namespace", "kubectl label namespace", "helm install"])
    {
        assert!(command.starts_with(beginning), "{command}");
    }
    let notes = fs::read_to_string(format!("{ROOT}/deploy/chart/templates/NOTES.txt")).unwrap();
    for text in [steps, &notes] {
        assert!(text.lines().any(|line| line.contains("rollout status") && line.ends_with(" --timeout=3m")));
        assert!(
            text.contains("--field-selector=status.phase!=Running"),
            "it lists the nodes without a result"
        );
    }
}

/// The documented command shows a line for each finding that needs attention and for each pod whose check has not ended,
/// and the number of nodes that answered, although one pod wrote something else.
#[test]
fn the_documented_command_groups_the_findings_of_all_nodes() {
    let document = fs::read_to_string(format!("{ROOT}/docs/install.md")).unwrap();
    let command = between(&document, "kubectl -n cw-object-storage logs ", "\n```");
    let (_, program) = command.split_once("| jq").unwrap();
    let notes = fs::read_to_string(format!("{ROOT}/deploy/chart/templates/NOTES.txt")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&notes).contains(&words(program)), "the notes of the chart have another command");

    let line = |node: &str, level: &str, part: &str, fix: Option<&str>| {
        json!({ "node": node, "level": level, "part": part, "what": format!("the {part}"), "fix": fix })
            .to_string()
    };
    let not_ended =
        r#"error: container "check" in pod "lota-preflight-x" is waiting to start: ContainerCreating"#;
    let lines = [
        line("n2", "warn", "rules", Some("accept it")),
        line("n1", "ok", "config", None),
        line("n1", "warn", "rules", Some("accept it")),
        not_ended.to_owned(),
        "DEBUG something".to_owned(),
        "12".to_owned(),
        line("n2", "fail", "gateway", Some("start it")),
        line("n3", "ok", "config", None),
    ];
    let folder = env::temp_dir().join(format!("lota-preflight-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("log"), lines.join("\n")).unwrap();
    let kubectl = folder.join("kubectl");
    // It stops at a pod without a log, if it is not told otherwise.
    let script =
        "#!/bin/sh\ncase \" $* \" in *' --ignore-errors '*) cat \"${0%/*}/log\" ;; *) exit 1 ;; esac\n";
    fs::write(&kubectl, script).unwrap();
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap());
    let shell = format!("kubectl -n cw-object-storage logs {command}");
    let output = Command::new("sh").args(["-c", &shell]).env("PATH", path).output().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|row| row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let expected = [
        vec!["fail", "gateway", "1", "n2", "the gateway", "start it"],
        vec!["warn", "rules", "2", "n1,n2", "the rules", "accept it"],
        vec!["fail", "check", "1", "?", not_ended],
        vec!["all", "-", "3", "nodes have answered"],
    ];
    assert_eq!(rows, expected, "{table}");
}
