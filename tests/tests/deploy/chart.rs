//! The chart with other values than its defaults, and the values that it rejects.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::{
    kustomize::read,
    render::{GATEWAY, container, deploy, helm, lota_toml, objects, one, tool, validate},
};

/// Returns the chart's objects with a gateway and these values.
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
        let (_, errors) = validate(&yaml.replace(right, wrong));
        assert_eq!(errors.len(), 1, "{wrong}: {errors:?}");
    }
}

#[test]
fn the_daemonset_fits_the_node() {
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
    assert_eq!(container["ports"], Value::Null, "a port would prevent scheduling the next pod on the node");
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
        let expected = json!({ "host": "127.0.0.1", "port": 7481, "path": "/healthz" });
        assert_eq!(container[probe]["httpGet"], expected);
    }
    assert_eq!(container["readinessProbe"]["exec"]["command"], json!(["lota", "ready"]));
    let folders = |kind: &str| -> Vec<&str> {
        let volumes = pod["volumes"].as_array().unwrap().iter();
        volumes
            .filter(|volume| volume["hostPath"]["type"] == kind)
            .filter_map(|volume| volume["hostPath"]["path"].as_str())
            .collect()
    };
    assert_eq!(folders("Directory"), ["/sys/fs/bpf", "/sys/fs/cgroup"]);
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
fn the_service_account_has_only_the_needed_permissions() {
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
fn hardened_has_four_capabilities_and_a_read_only_root() {
    let objects = chart(&json!({ "hardened": true }));
    let expected = json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "PERFMON"] },
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
fn the_cluster_key_is_generated_or_existing() {
    let key = || {
        let objects = chart(&json!({}));
        one(&objects, "Secret")["data"]["cluster-secret"].as_str().unwrap().to_owned()
    };
    let (one, other) = (key(), key());
    // In base64: the daemon needs at least 32 bytes; the chart generates 64 characters.
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
fn every_value_can_be_changed() {
    let objects = chart(&json!({
        "image": { "repository": "r.example/lota", "tag": "", "digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Always" },
        "imagePullSecrets": [{ "name": "pull" }],
        "config.node": { "zone": "rack-7", "region": "us-east" },
        "config.endpoint": { "zone": "s3.example", "vip": "169.254.1.1", "vip6": "fd10:face::80", "when_down": "cluster-dns" },
        "config.datapath": { "uplink": "eth0", "mode": "tc", "attach": "clsact", "answer_dns": false },
        "config.gateway": {
            "endpoint": "https://s3.example", "protocol": "lota", "direct_allow": ["http://s.example:9001"],
            "re_sign": { "region": "us-east-1", "style": "virtual-host" },
        },
        "config.backend": { "endpoints": ["http://a:1", "http://b:2"], "region": "r" },
        "config.cache": {
            "disks": [{ "folder": "/mnt/nvme0/lota", "capacity": "2TiB" }, { "folder": "/mnt/nvme1/lota", "capacity": "1TiB" }],
            "min_free": "1GiB", "high_percent": 90, "low_percent": 80, "admission": "frequent",
            "encryption": "required", "scrub_rate": "0", "partial": false, "after_write": "keep",
            "max_objects": 1_000_000,
        },
        "config.fill": { "concurrency": 8, "part_size": "4MiB", "md5_max_size": "0" },
        "config.peers": { "port": 7000, "max_owners": 2, "hot_request_rate": 1000, "tls": { "mode": "send", "server_name": "nodes" } },
        "config.placement": { "stripe_above": "1TiB", "stripe": "128MiB", "per_zone": true },
        "config.admin": { "listen": "[::1]:7001", "metrics_listen": "[::]:7002" },
        "config.limits": { "connections": 20_000_000, "connections_per_pod": 5, "header_size": "32KiB", "idle_timeout_seconds": 60, "fills": 9,
            "body_memory": "2GiB", "fill_overread": "1TiB", "pod_bandwidth": "500MiB" },
        "config.access": {
            "default": "deny", "allow": ["10.1.64.0/18", "fd00:1::/64"], "deny": ["10.1.64.13"], "host_network": true,
            "identity": "cgroup+address", "forwarders": [{ "podSelector": { "matchLabels": { "app": "proxy" } } }],
            "from": [
                { "namespaceSelector": {}, "podSelector": { "matchExpressions": [
                    { "key": "app", "operator": "In", "values": ["train", "say \"hi\" \\ <&>"] },
                    { "key": "lota.dev/x", "operator": "Exists" },
                ] } },
                { "ipBlock": { "cidr": "10.1.0.0/16", "except": ["10.1.5.0/24"] } },
            ],
        },
        "backendCredential.existingSecret": "credential",
        "reSignClients.existingSecret": "clients",
        "peerTls": { "existingSecret": "lota-peers", "crlConfigMap": "revoked" },
        "rollOnConfigChange": false,
        "resources": { "requests": { "cpu": 1 }, "limits": { "memory": "8Gi" } },
        "nodeSelector": { "gpu": "true" },
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "gpu", "operator": "Exists" }] }] } } },
        "podAnnotations": { "a": "b" }, "podLabels": { "c": "d" }, "env": [{ "name": "LOTA_LOG", "value": "debug" }],
        "serviceAccount": { "name": "sa", "annotations": { "e": "f" } },
        "cacheHostPathType": "Directory", "kubeletCgroupRoot": "/custom.slice",
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
    assert_eq!(config["access"]["cgroup_path"].as_str(), Some("/run/cgroup/custom.slice"));
    assert_eq!(config["gateway"]["re_sign"]["clients_file"].as_str(), Some("/etc/lota/clients.toml"));
    let read = read(&text);
    assert_eq!(read.cache.disks.len(), 2);
    assert_eq!(read.backend.map(|backend| backend.credential_file), Some("/etc/lota/credential.toml".into()));
    let tls = read.peers.and_then(|peers| peers.tls).unwrap();
    assert_eq!(tls.crl, Some("/etc/lota/peers-tls/ca.crl".into()));
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

#[test]
fn a_secret_of_cert_manager_encrypts_between_nodes() {
    let objects = chart(&json!({ "peerTls.existingSecret": "lota-peers-tls" }));
    let config: toml::Table = lota_toml(&objects).parse().unwrap();
    let expected = json!({
        "certificate": "/etc/lota/peers-tls/tls.crt",
        "key": "/etc/lota/peers-tls/tls.key",
        "ca": "/etc/lota/peers-tls/ca.crt",
        "server_name": "lota-peers",
    });
    assert_eq!(serde_json::to_value(&config["peers"]["tls"]).unwrap(), expected);
    // In a volume of whole folders, which kubelet updates.
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let sources = &pod["volumes"][0]["projected"]["sources"];
    let files =
        ["tls.crt", "tls.key", "ca.crt"].map(|key| json!({ "key": key, "path": format!("peers-tls/{key}") }));
    assert_eq!(sources[2], json!({ "secret": { "name": "lota-peers-tls", "items": files } }));
    assert!(container(&objects)["volumeMounts"][0]["subPath"].is_null());
    assert!(!lota_toml(&chart(&json!({}))).contains("[peers.tls]"));
}

/// null removes a default of the chart.
#[test]
fn null_removes_a_default() {
    let objects = chart(
        &json!({ "config.cache.min_free": null, "config.admin.metrics_listen": null, "config.access": null }),
    );
    let config: toml::Table = lota_toml(&objects).parse().unwrap();
    assert!(config["cache"].get("min_free").is_none() && config["admin"].get("metrics_listen").is_none());
    let access: Vec<_> = config["access"].as_table().unwrap().keys().collect();
    assert_eq!(access, ["cgroup_path"], "the chart's own key");
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
    assert_ne!(before, annotation(json!({ "config.peers.max_owners": 4 })));
    assert!(annotation(json!({ "rollOnConfigChange": false })).is_null());
}

#[test]
fn a_missing_gateway_is_an_error_with_a_fix() {
    let message = helm(&[]).unwrap_err();
    assert!(message.contains("--set config.gateway.endpoint="), "{message}");
}

#[test]
fn invalid_values_are_rejected() {
    let re_sign = json!({ "region": "r" });
    for (key, value, hint) in [
        ("hardend", json!(true), "hardend"),
        ("hardened", json!("yes"), "hardened"),
        ("config.gatway", json!({}), "gatway"),
        ("config.node.name", json!("n1"), "name"),
        ("config.kubernetes", json!({}), "kubernetes"),
        ("config.gateway.endpoint", json!("s3.internal:9000"), "endpoint"),
        ("config.gateway.endpoint", json!("http://s3.internal/path"), "endpoint"),
        ("config.gateway.protocol", json!("s4"), "protocol"),
        ("config.gateway.re_sign", re_sign, "reSignClients"),
        ("config.backend", json!({ "endpoints": ["http://a:1"] }), "backendCredential"),
        ("config.backend", json!({ "endpoints": [] }), "endpoints"),
        ("backendCredential.existingSecret", json!("c"), "backendCredential"),
        ("config.datapath.mode", json!("xdp"), "mode"),
        ("config.datapath.bpffs_path", json!("/x"), "bpffs_path"),
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
        ("config.peers.max_owners", json!(17), "max_owners"),
        ("config.peers.secret_file", json!("/x"), "secret_file"),
        ("config.peers.tls", json!({ "mode": "send" }), "peerTls.existingSecret"),
        ("config.peers.tls", json!({ "mode": "tls" }), "mode"),
        ("config.peers.tls", json!({ "key": "/x" }), "key"),
        ("peerTls.crlConfigMap", json!("revoked"), "peerTls.existingSecret"),
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
        ("config.access.identity", json!("cgroup"), "identity"),
        ("config.endpoint.when_down", json!("ignore"), "when_down"),
        ("config.access.cgroup_path", json!("/x"), "cgroup_path"),
        ("config.access.forwarders", json!([{ "ipBlock": { "cidr": "10.0.0.0/8" } }]), "ipBlock"),
        ("kubeletCgroupRoot", json!("custom.slice"), "kubeletCgroupRoot"),
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

/// `deploy/lota.toml` has every key of the daemon, and the chart's schema every key that the chart does not set
/// itself.
#[test]
fn the_schema_has_the_daemons_keys() {
    const THE_CHARTS: [&str; 23] = [
        "access.cgroup_path",
        "access.pods.address",
        "access.pods.interface",
        "admin.socket",
        "backend.credential_file",
        "cache.capacity",
        "cache.folder",
        "datapath.bpffs_path",
        "gateway.re_sign.clients_file",
        "kubernetes.namespace",
        "kubernetes.service",
        "kubernetes.taint",
        "node.address",
        "node.name",
        "peers.nodes.address",
        "peers.nodes.capacity",
        "peers.nodes.name",
        "peers.nodes.zone",
        "peers.secret_file",
        "peers.tls.ca",
        "peers.tls.certificate",
        "peers.tls.crl",
        "peers.tls.key",
    ];
    /// Keys in a comment of `deploy/lota.toml`.
    const COMMENTED: [&str; 2] = ["cache.disks.capacity", "cache.disks.folder"];
    let text = fs::read_to_string(deploy("lota.toml")).unwrap();
    let mut daemons = BTreeSet::new();
    keys_of_toml("", &toml::Value::Table(text.parse().unwrap()), &mut daemons);
    daemons.retain(|key| !THE_CHARTS.contains(&key.as_str()));
    daemons.extend(COMMENTED.map(str::to_owned));
    // Operators choose the names in these tables; the daemon checks what is in them.
    for tables in ["backends", "gateways"] {
        daemons.retain(|key| !key.starts_with(&format!("{tables}.")));
        daemons.insert(tables.to_owned());
    }
    let schema: Value =
        serde_json::from_slice(&fs::read(deploy("chart/values.schema.json")).unwrap()).unwrap();
    let mut charts = BTreeSet::new();
    keys_of_schema("", &schema["properties"]["config"], &mut charts);
    // The contents of rules have the schema of a NetworkPolicy.
    for keys in [&mut daemons, &mut charts] {
        for list in ["access.from", "access.forwarders"] {
            let rules: Vec<String> = keys.iter().filter(|key| key.starts_with(list)).cloned().collect();
            if !rules.is_empty() {
                keys.retain(|key| !rules.contains(key));
                keys.insert(list.to_owned());
            }
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
