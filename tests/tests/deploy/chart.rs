//! The chart: what it renders with other values than its own, and what it refuses.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::{
    kustomize::read,
    render::{GATEWAY, container, deploy, helm, judge, lota_toml, objects, one, tool},
};

/// The chart's objects with a gateway and these values.
fn chart(values: &Value) -> Vec<Value> {
    objects(with(values))
}

fn with(values: &Value) -> Result<String, String> {
    let mut arguments: Vec<String> = GATEWAY.map(str::to_owned).to_vec();
    for (key, value) in values.as_object().expect("values by their paths") {
        arguments.extend(["--set-json".to_owned(), format!("{key}={value}")]);
    }
    helm(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn lint() {
    let output = tool("LOTA_HELM").args(["lint", "--strict", "deploy/chart"]).args(GATEWAY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_schemas_are_strict() {
    let yaml = helm(&[&GATEWAY[..], &["--set-json", "podMonitor.enabled=true"]].concat()).unwrap();
    for (right, wrong) in
        [("hostNetwork:", "hostNetwrk:"), ("maxSurge: 1", "maxSurge: []"), ("interval:", "intervall:")]
    {
        let (_, errors) = judge(&yaml.replace(right, wrong));
        assert_eq!(errors.len(), 1, "{wrong}: {errors:?}");
    }
}

#[test]
fn the_daemonset_is_as_a_node_needs_it() {
    let objects = chart(&json!({}));
    let set = &one(&objects, "DaemonSet")["spec"];
    let rolling = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    assert_eq!(set["updateStrategy"], rolling);
    let pod = &set["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    let container = container(&objects);
    assert_eq!(container["ports"], Value::Null, "a port would keep the successor from the node");
    assert_eq!(container["securityContext"], json!({ "privileged": true }));
    for (name, field) in [
        ("LOTA_NODE_NAME", "spec.nodeName"),
        ("LOTA_NODE_ADDRESS", "status.hostIP"),
        ("LOTA_NODE_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
        ("LOTA_INSTANCE", "metadata.uid"),
    ] {
        let variable = json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } });
        assert!(container["env"].as_array().unwrap().contains(&variable), "{name}");
    }
    for probe in ["startupProbe", "livenessProbe"] {
        let asked = json!({ "host": "127.0.0.1", "port": 7481, "path": "/healthz" });
        assert_eq!(container[probe]["httpGet"], asked);
    }
    assert_eq!(container["readinessProbe"]["exec"]["command"], json!(["lota", "ready"]));
    let folders = |kind: &str| -> Vec<&str> {
        let volumes = pod["volumes"].as_array().unwrap().iter();
        volumes
            .filter(|volume| volume["hostPath"]["type"] == kind)
            .filter_map(|volume| volume["hostPath"]["path"].as_str())
            .collect()
    };
    assert_eq!(folders("Directory"), ["/sys/fs/bpf"]);
    assert_eq!(folders("DirectoryOrCreate"), ["/run/lota", "/var/cache/lota"]);
    let service = &one(&objects, "Service")["spec"];
    assert_eq!(
        (&service["clusterIP"], &service["publishNotReadyAddresses"]),
        (&json!("None"), &json!(false))
    );
    assert_eq!(service["selector"], set["selector"]["matchLabels"]);
    assert!(objects.iter().all(|object| object["kind"] != "PodDisruptionBudget"));
}

#[test]
fn it_may_read_what_it_needs_and_nothing_else() {
    let watch = ["get", "list", "watch"];
    let objects = chart(&json!({}));
    let pods = json!([{ "apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": watch }]);
    assert_eq!(one(&objects, "ClusterRole")["rules"], pods);
    let nodes = json!([
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch },
        { "apiGroups": [""], "resources": ["endpoints"], "verbs": watch },
    ]);
    assert_eq!(one(&objects, "Role")["rules"], nodes);
    let taint = chart(&json!({ "nodeTaint.enabled": true }));
    let node = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] });
    assert_eq!(one(&taint, "ClusterRole")["rules"][1], node);
    assert!(lota_toml(&taint).contains("\ntaint = \"lota.dev/not-ready\"\n"));
}

#[test]
fn hardened_has_three_capabilities_and_a_read_only_root() {
    let objects = chart(&json!({ "hardened": true }));
    let expected = json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_BIND_SERVICE"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    assert_eq!(container(&objects)["securityContext"], expected);
    let profile = json!({ "type": "Localhost", "localhostProfile": "lota.json" });
    let objects = chart(&json!({
        "hardened": true, "hardening.seccompProfile": profile, "hardening.seLinuxOptions": { "type": "spc_t" }
    }));
    let context = &container(&objects)["securityContext"];
    assert_eq!((&context["seccompProfile"], &context["seLinuxOptions"]["type"]), (&profile, &json!("spc_t")));
}

#[test]
fn the_cluster_key_is_made_or_named() {
    let key = || {
        let objects = chart(&json!({}));
        one(&objects, "Secret")["data"]["cluster-secret"].as_str().unwrap().to_owned()
    };
    let (one, other) = (key(), key());
    // In base64: 64 characters of the daemon's 32 at least.
    assert!(one.len() > 80 && one != other);
    let named = chart(&json!({ "clusterKey.existingSecret": "mine", "clusterKey.key": "k" }));
    assert!(named.iter().all(|object| object["kind"] != "Secret"));
    let text = json!(named).to_string();
    assert!(
        text.contains(r#"{"secret":{"items":[{"key":"k","path":"cluster-secret"}],"name":"mine"}}"#),
        "{text}"
    );
}

#[test]
fn every_value_can_be_another() {
    let objects = chart(&json!({
        "image": { "repository": "r.example/lota", "tag": "", "digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Always" },
        "imagePullSecrets": [{ "name": "pull" }],
        "config.node": { "zone": "rack-7", "region": "us-east" },
        "config.endpoint": { "zone": "s3.example", "vip": "169.254.1.1", "vip6": "fd10:face::80" },
        "config.datapath": { "uplink": "eth0", "mode": "tc", "attach": "clsact", "answer_names": false },
        "config.gateway": {
            "endpoint": "https://s3.example", "protocol": "lota", "direct_allow": ["http://s.example:9001"],
            "resign": { "region": "us-east-1", "style": "virtual-host" },
        },
        "config.backend": { "endpoints": ["http://a:1", "http://b:2"], "region": "r" },
        "config.cache": {
            "disks": [{ "folder": "/mnt/nvme0/lota", "capacity": "2TiB" }, { "folder": "/mnt/nvme1/lota", "capacity": "1TiB" }],
            "min_free": "1GiB", "high_percent": 90, "low_percent": 80, "admission": "frequent",
            "encryption": "required", "scrub": "0",
        },
        "config.fill": { "requests": 8, "part": "4MiB", "md5_up_to": "0" },
        "config.peers": { "port": 7000, "owners": 2, "hot_requests": 1000 },
        "config.admin": { "listen": "[::1]:7001", "metrics_listen": "[::]:7002" },
        "config.limits": { "connections": 20_000_000, "connections_per_pod": 5, "head": "32KiB", "idle_seconds": 60, "fills": 9,
            "body_memory": "2GiB", "fill_debt": "1TiB" },
        "config.access": {
            "default": "deny", "allow": ["10.1.64.0/18", "fd00:1::/64"], "deny": ["10.1.64.13"], "host_network": true,
            "from": [
                { "namespaceSelector": {}, "podSelector": { "matchExpressions": [
                    { "key": "app", "operator": "In", "values": ["train", "say \"hi\" \\ <&>"] },
                    { "key": "lota.dev/x", "operator": "Exists" },
                ] } },
                { "ipBlock": { "cidr": "10.1.0.0/16", "except": ["10.1.5.0/24"] } },
            ],
        },
        "backendCredential.existingSecret": "credential",
        "resignClients.existingSecret": "clients",
        "rollOnConfigChange": false,
        "resources": { "requests": { "cpu": 1 }, "limits": { "memory": "8Gi" } },
        "nodeSelector": { "gpu": "true" },
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "gpu", "operator": "Exists" }] }] } } },
        "podAnnotations": { "a": "b" }, "podLabels": { "c": "d" }, "env": [{ "name": "LOTA_LOG", "value": "debug" }],
        "serviceAccount": { "name": "sa", "annotations": { "e": "f" } },
        "cacheHostPathType": "Directory",
        "namespace.create": true, "resourceQuota.enabled": true, "nodeTaint.enabled": true, "coreDNS.enabled": true,
        "podMonitor": { "enabled": true, "interval": "10s", "labels": { "release": "prometheus" } },
        "serviceMonitor.enabled": true,
        "prometheusRule": { "enabled": true, "docs": "https://wiki.example/lota", "labels": { "release": "prometheus" } },
    }));
    let text = lota_toml(&objects);
    let config: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(config["limits"]["connections"].as_integer(), Some(20_000_000));
    assert_eq!(config["cache"]["disks"][1]["folder"].as_str(), Some("/mnt/nvme1/lota"));
    let expressions = &config["access"]["from"][0]["podSelector"]["matchExpressions"];
    assert_eq!(expressions[0]["values"][1].as_str(), Some("say \"hi\" \\ <&>"));
    assert_eq!(config["access"]["from"][0]["namespaceSelector"].as_table().map(toml::Table::len), Some(0));
    assert_eq!(config["gateway"]["resign"]["clients_file"].as_str(), Some("/etc/lota/clients.toml"));
    let read = read(&text);
    assert_eq!(read.cache.disks.len(), 2);
    assert_eq!(read.backend.map(|backend| backend.credential_file), Some("/etc/lota/credential.toml".into()));
    let text = json!(objects).to_string();
    for part in [
        "\"path\":\"/mnt/nvme0/lota\",\"type\":\"Directory\"",
        "\"replacement\":\"$1:7002\"",
        "60 IN AAAA fd10:face::80",
        "\"host\":\"::1\",\"path\":\"/healthz\",\"port\":7001",
        "r.example/lota@sha256:0000",
        "https://wiki.example/lota/troubleshooting.md#",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// null takes out what the chart has a default for.
#[test]
fn null_leaves_it_to_the_daemon() {
    let objects = chart(
        &json!({ "config.cache.min_free": null, "config.admin.metrics_listen": null, "config.access": null }),
    );
    let config: toml::Table = lota_toml(&objects).parse().unwrap();
    assert!(config["cache"].get("min_free").is_none() && config["admin"].get("metrics_listen").is_none());
    assert!(config.get("access").is_none());
}

#[test]
fn pods_roll_when_the_configuration_changes() {
    let annotation = |values: Value| {
        let objects = chart(&values);
        one(&objects, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]["lota.dev/config"].clone()
    };
    let before = annotation(json!({}));
    assert!(before.is_string());
    assert_eq!(before, annotation(json!({ "image.tag": "0.1.0" })));
    assert_ne!(before, annotation(json!({ "config.peers.owners": 4 })));
    assert!(annotation(json!({ "rollOnConfigChange": false })).is_null());
}

#[test]
fn without_a_gateway_it_says_what_to_do() {
    let message = helm(&[]).unwrap_err();
    assert!(message.contains("--set config.gateway.endpoint="), "{message}");
}

#[test]
fn wrong_values_are_refused() {
    let resign = json!({ "region": "r" });
    for (key, value, hint) in [
        ("hardend", json!(true), "hardend"),
        ("hardened", json!("yes"), "hardened"),
        ("config.gatway", json!({}), "gatway"),
        ("config.node.name", json!("n1"), "name"),
        ("config.kubernetes", json!({}), "kubernetes"),
        ("config.gateway.endpoint", json!("s3.internal:9000"), "endpoint"),
        ("config.gateway.endpoint", json!("http://s3.internal/path"), "endpoint"),
        ("config.gateway.protocol", json!("s4"), "protocol"),
        ("config.gateway.resign", resign, "resignClients"),
        ("config.backend", json!({ "endpoints": ["http://a:1"] }), "backendCredential"),
        ("config.backend", json!({ "endpoints": [] }), "endpoints"),
        ("backendCredential.existingSecret", json!("c"), "backendCredential"),
        ("config.datapath.mode", json!("xdp"), "mode"),
        ("config.datapath.pins", json!("/x"), "pins"),
        ("config.datapath.pod_interfaces", json!(["v*th"]), "pod_interfaces"),
        ("config.datapath.uplink", json!("eth*"), "uplink"),
        ("config.endpoint.vip", json!("fd10::1"), "vip"),
        ("config.cache.disks", json!([]), "disks"),
        ("config.cache.disks", json!([{ "folder": "cache", "capacity": "1GiB" }]), "folder"),
        ("config.cache.disks", json!([{ "folder": "/c", "capacity": "1GB" }]), "capacity"),
        ("config.cache.disks", json!([{ "folder": "/c" }]), "capacity"),
        ("config.cache.folder", json!("/var/cache/lota"), "folder"),
        ("config.cache.high_percent", json!(101), "high_percent"),
        ("config.peers.port", json!(0), "port"),
        ("config.peers.port", json!("7480"), "port"),
        ("config.peers.owners", json!(17), "owners"),
        ("config.peers.secret_file", json!("/x"), "secret_file"),
        ("config.admin.listen", json!("0.0.0.0:7481"), "listen"),
        ("config.admin.metrics_listen", json!("7482"), "metrics_listen"),
        ("config.limits.connections", json!(0), "connections"),
        ("config.access.default", json!("maybe"), "default"),
        ("config.access.from", json!([{ "podselector": {} }]), "podselector"),
        ("config.access.from", json!([{}]), "from"),
        ("config.access.from", json!([{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }]), "from"),
        ("config.access.from", json!([{ "ipBlock": { "cidr": "10.0.0.0" } }]), "cidr"),
        (
            "config.access.from",
            json!([{ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } }]),
            "operator",
        ),
        ("clusterKey.existingSecret", json!("Not_A_Name"), "existingSecret"),
        ("hardening.seccompProfile", json!({ "type": "Localhost" }), "localhostProfile"),
        ("hardening.seccompProfile", json!({ "type": "None" }), "seccompProfile"),
        ("image.digest", json!("0.1.0"), "digest"),
        ("image.pullPolicy", json!("Sometimes"), "pullPolicy"),
        ("updateStrategy.type", json!("Recreate"), "updateStrategy"),
        ("cacheHostPathType", json!("File"), "cacheHostPathType"),
        ("podMonitor.interval", json!("half a minute"), "interval"),
        ("prometheusRule.enabled", json!(1), "prometheusRule"),
    ] {
        let message = with(&json!({ key: value })).expect_err(key);
        assert!(message.contains(hint), "{key}={value}: {message}");
    }
    let unasked = json!({ "podMonitor.enabled": true, "config.admin.metrics_listen": null });
    assert!(with(&unasked).unwrap_err().contains("need config.admin.metrics_listen"));
}

/// `deploy/lota.toml` has every key of the daemon's, and the chart's schema those that are not the chart's own.
#[test]
fn the_schema_knows_the_daemons_keys() {
    const THE_CHARTS: [&str; 17] = [
        "access.pods.address",
        "access.pods.interface",
        "admin.socket",
        "backend.credential_file",
        "cache.capacity",
        "cache.folder",
        "datapath.pins",
        "gateway.resign.clients_file",
        "kubernetes.namespace",
        "kubernetes.service",
        "kubernetes.taint",
        "node.address",
        "node.name",
        "peers.nodes.address",
        "peers.nodes.capacity",
        "peers.nodes.name",
        "peers.secret_file",
    ];
    /// In `deploy/lota.toml` it is in a comment.
    const COMMENTED: [&str; 2] = ["cache.disks.capacity", "cache.disks.folder"];
    let text = fs::read_to_string(deploy("lota.toml")).unwrap();
    let mut daemons = BTreeSet::new();
    keys_of_toml("", &toml::Value::Table(text.parse().unwrap()), &mut daemons);
    daemons.retain(|key| !THE_CHARTS.contains(&key.as_str()));
    daemons.extend(COMMENTED.map(str::to_owned));
    let schema: Value =
        serde_json::from_slice(&fs::read(deploy("chart/values.schema.json")).unwrap()).unwrap();
    let mut charts = BTreeSet::new();
    keys_of_schema("", &schema["properties"]["config"], &mut charts);
    // What a rule has in it is a NetworkPolicy's.
    for keys in [&mut daemons, &mut charts] {
        let rules: Vec<String> = keys.iter().filter(|key| key.starts_with("access.from")).cloned().collect();
        if !rules.is_empty() {
            keys.retain(|key| !rules.contains(key));
            keys.insert("access.from".to_owned());
        }
    }
    assert_eq!(daemons, charts);
}

fn keys_of_toml(path: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                keys_of_toml(&under(path, key), value, keys);
            }
        }
        toml::Value::Array(items) if items.first().is_some_and(toml::Value::is_table) => {
            items.iter().for_each(|item| keys_of_toml(path, item, keys));
        }
        _ => _ = keys.insert(path.to_owned()),
    }
}

fn keys_of_schema(path: &str, schema: &Value, keys: &mut BTreeSet<String>) {
    match (schema["properties"].as_object(), schema["items"]["properties"].as_object()) {
        (Some(properties), _) | (None, Some(properties)) => {
            for (key, schema) in properties {
                keys_of_schema(&under(path, key), schema, keys);
            }
        }
        (None, None) => _ = keys.insert(path.to_owned()),
    }
}

fn under(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
