//! Firewalls and CNIs that decide about packets between pods and the VIP. Each scenario either works,
//! or `lota check` and `lota status` name the rule and what to do.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{AT_ONCE, DENIED, LONG_ENOUGH, Namespace, Reached, VIP, knock, run, run_with_input},
    tour::{Tour, wait_until},
};
use serde_json::Value;

use super::lota_json;

/// Node where what works is tested. Its last pod has no access.
const WORKING: u8 = 3;
/// Nodes where what does not work is tested, in turn: the daemon of one notices that its pods get through again while the
/// other is tested.
const HANGING: [u8; 2] = [1, 2];
/// Number of attempts from which on a pod counts as hanging.
const HANGING_ATTEMPTS: usize = 3;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Rules of other software.
enum Rules {
    /// For `nft -f`.
    Nft(&'static str),
    /// For `iptables-nft-restore`.
    Iptables(&'static str),
    /// For `iptables-legacy-restore`. Its tables remain, so there must be no scenario behind it.
    Legacy(&'static str),
}

struct Scenario {
    name: &'static str,
    rules: Rules,
    expected: Expected,
}

enum Expected {
    /// Pods with access reach LOTA, and others are refused.
    Works,
    /// The same, but `lota check` shows this text as a warning.
    WorksBut(&'static str),
    /// `lota check` and `lota status` show these texts.
    Named { rule: &'static str, fix: &'static str },
}

use Expected::{Named, Works, WorksBut};

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nftables with state: new connections to port 80, and only replies go out",
        rules: Rules::Nft(
            "table inet host {
                chain input {
                    type filter hook input priority filter; policy drop;
                    ct state established,related accept
                    ct state invalid drop
                    iif lo accept
                    iifname uplink accept
                    ct state new tcp dport { 22, 80 } accept
                }
                chain output {
                    type filter hook output priority filter; policy drop;
                    ct state established accept
                    oif lo accept
                    oifname uplink accept
                }
            }",
        ),
        expected: Works,
    },
    Scenario {
        name: "iptables as on Container-Optimized OS with GKE",
        rules: Rules::Iptables(COS),
        expected: Works,
    },
    Scenario { name: "ufw with port 80 allowed", rules: Rules::Iptables(UFW_80), expected: Works },
    Scenario {
        name: "firewalld with pods in the zone trusted",
        rules: Rules::Nft(FIREWALLD_TRUSTED),
        expected: Works,
    },
    Scenario {
        name: "firewalld with pods in the zone public",
        rules: Rules::Nft(FIREWALLD_PUBLIC),
        expected: Named { rule: "inet firewalld filter_INPUT` drops pods' packets", fix: "firewall-cmd" },
    },
    Scenario {
        name: "ufw without port 80",
        rules: Rules::Iptables(UFW),
        expected: Named {
            rule: "the policy of the nftables chain `ip filter INPUT` drops",
            fix: "`ufw allow proto tcp to 169.254.77.80 port 80`",
        },
    },
    Scenario {
        name: "Calico with DefaultEndpointToHostAction=Drop",
        rules: Rules::Iptables(CALICO_DROP),
        expected: Named {
            rule: "`ip filter cali-wl-to-host` drops pods' packets",
            fix: "set defaultEndpointToHostAction to Accept",
        },
    },
    Scenario {
        name: "a Calico policy without egress to the VIP",
        rules: Rules::Iptables(CALICO_POLICY),
        expected: Named { rule: "`ip filter cali-fw-pod` drops", fix: "allow egress to 169.254.77.80" },
    },
    Scenario {
        name: "link-local addresses dropped in prerouting",
        rules: Rules::Nft(
            "table ip links {
                set local { type ipv4_addr; flags interval; elements = { 169.254.0.0/16, 240.0.0.0/4 } }
                chain before { type filter hook prerouting priority raw; ip daddr @local counter drop; }
            }",
        ),
        expected: Named { rule: "`ip links before` drops pods' packets", fix: "nft -a list chain ip links before" },
    },
    Scenario {
        name: "replies from link-local addresses dropped",
        rules: Rules::Nft(
            "table ip links {
                chain out { type filter hook output priority filter; ip saddr 169.254.0.0/16 oifname veth* drop; }
            }",
        ),
        expected: Named { rule: "`ip links out` drops the replies", fix: "accept the replies of 169.254.77.80:80 to pods" },
    },
    Scenario {
        name: "local addresses dropped by a lookup of routes",
        rules: Rules::Nft(
            "table inet host {
                chain before {
                    type filter hook prerouting priority mangle;
                    iifname veth* fib daddr type local tcp dport 80 drop
                }
            }",
        ),
        expected: Named { rule: "`inet host before` drops pods' packets", fix: "169.254.77.80:80 in the same chain" },
    },
    Scenario {
        name: "marks, reverse paths and ranges of ports, as of kubelet and CNIs",
        rules: Rules::Iptables(MARKS),
        expected: Works,
    },
    Scenario {
        name: "local addresses of the interface by a lookup of routes",
        rules: Rules::Nft(
            "table inet host {
                chain before {
                    type filter hook prerouting priority mangle;
                    iifname veth* fib daddr . iif type != { local, broadcast, multicast } drop
                }
            }",
        ),
        expected: Named { rule: "`inet host before` drops pods' packets", fix: "169.254.77.80:80 in the same chain" },
    },
    Scenario {
        name: "packets dropped by number",
        rules: Rules::Nft(
            "table inet host {
                chain input { type filter hook input priority filter; tcp dport 80 numgen inc mod 1 0 drop; }
            }",
        ),
        expected: Named {
            rule: "`inet host input` may drop pods' packets to 169.254.77.80:80 (it depends on what LOTA cannot evaluate: \
                   `numgen`)",
            fix: "nft -a list chain inet host input",
        },
    },
    Scenario {
        name: "new connections of pods that are not tracked",
        rules: Rules::Nft(
            "table ip raw {
                chain before { type filter hook prerouting priority raw; iifname veth* notrack; }
            }
            table inet host {
                chain input {
                    type filter hook input priority filter; policy drop;
                    iif { lo, uplink } accept
                    ct state { established, related } accept
                    ct state new tcp dport 80 accept
                }
            }",
        ),
        expected: Named {
            rule: "the policy of the nftables chain `inet host input` drops pods' packets",
            fix: "nft -a list chain inet host input",
        },
    },
    Scenario {
        name: "rules at the pods' interfaces",
        rules: Rules::Nft(
            "table netdev pods {
                chain from {
                    type filter hook ingress devices = { uplink, veth-p1, veth-p2 } priority filter;
                    ip daddr 169.254.0.0/16 drop
                }
            }",
        ),
        expected: Named { rule: "`netdev pods from` drops pods' packets", fix: "nft -a list chain netdev pods from" },
    },
    Scenario {
        name: "rules at other interfaces, and in tables that are not applied",
        rules: Rules::Nft(
            "table netdev nodes {
                chain from { type filter hook ingress device uplink priority filter; ip daddr 169.254.0.0/16 drop; }
            }
            table inet nodes {
                chain from { type filter hook ingress device uplink priority filter; ip daddr 169.254.0.0/16 drop; }
            }
            table inet off {
                flags dormant
                chain input { type filter hook input priority filter; policy drop; }
            }",
        ),
        expected: Works,
    },
    Scenario {
        name: "a rate of new connections",
        rules: Rules::Nft(
            "table inet host {
                chain input {
                    type filter hook input priority filter;
                    iifname veth* tcp dport 80 ct state new limit rate over 100/second drop
                }
            }",
        ),
        expected: WorksBut("(it depends on what LOTA cannot evaluate: `limit`)"),
    },
    Scenario {
        name: "the port for other nodes not allowed",
        rules: Rules::Nft(
            "table inet host {
                chain input {
                    type filter hook input priority filter;
                    iifname uplink ct state new tcp dport { 7480, 7481 } reject with tcp reset
                }
            }",
        ),
        expected: WorksBut("`inet host input` drops other nodes' packets to TCP port 7480"),
    },
    Scenario {
        name: "iptables-legacy without port 80",
        rules: Rules::Legacy("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 80 -j DROP\nCOMMIT\n"),
        expected: Named { rule: "iptables-legacy may drop packets", fix: "`iptables-legacy-save`" },
    },
];

const COS: &str = include_str!("rules/container-optimized-os.iptables");
const UFW: &str = include_str!("rules/ufw.iptables");
const UFW_80: &str = include_str!("rules/ufw-port-80.iptables");
const FIREWALLD_TRUSTED: &str = include_str!("rules/firewalld-trusted.nft");
const FIREWALLD_PUBLIC: &str = include_str!("rules/firewalld-public.nft");
const CALICO_DROP: &str = include_str!("rules/calico-drop.iptables");
const MARKS: &str = include_str!("rules/marks.iptables");
const CALICO_POLICY: &str = include_str!("rules/calico-policy.iptables");

/// The scenarios, with their names.
pub(crate) fn scenarios() -> impl Iterator<Item = (String, usize)> {
    SCENARIOS.iter().enumerate().map(|(at, scenario)| (format!("host rules: {}", scenario.name), at))
}

/// Runs one scenario.
pub(crate) fn scenario(tour: &mut Tour, at: usize) -> Result<()> {
    let Scenario { rules, expected, .. } = SCENARIOS.get(at).context("no such scenario")?;
    let node = if matches!(expected, Named { .. }) { HANGING[at % HANGING.len()] } else { WORKING };
    let (place, pod) = (tour.lab.node(node), tour.pod(node, 1));
    wait_until("the daemon to notice the end of another scenario", || {
        Ok(finding(tour, node, "connections")?["level"] == "ok")
    })?;
    let applied = apply(&place, rules);
    let held = applied.and_then(|()| match expected {
        Works => works(tour, None),
        WorksBut(warning) => works(tour, Some(warning)),
        Named { rule, fix } => named(tour, node, rule, fix),
    });
    remove(&place, rules)?;
    held?;
    wait_until("LOTA to work without the rules", || open(&pod))
}

/// A firewall that accepts LOTA's own ports does not accept those that stand for a gateway's address.
pub(crate) fn of_targets(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(WORKING);
    let node = &tour.nodes[usize::from(WORKING) - 1];
    let config = fs::read_to_string(node.config())?;
    let file = node.folder().join("addresses.toml");
    fs::write(&file, config.replace("[gateway]\n", "[gateway]\naddresses = [\"10.0.0.5\"]\n"))?;
    let rules = &SCENARIOS[0].rules;
    apply(&place, rules)?;
    let mut without = Vec::new();
    let passes = wait_until("the VIP's connections to be tracked", || {
        without = check(tour, WORKING, None)?;
        Ok(without.iter().all(|finding| finding["level"] == "ok"))
    });
    let with = check(tour, WORKING, Some(&file));
    remove(&place, rules)?;
    passes.with_context(|| format!("without addresses: {without:?}"))?;
    let with = with?;
    let names = |finding: &Value| {
        has(finding, "what", "chain `inet host input`") && has(finding, "fix", "169.254.77.80:65472")
    };
    ensure!(with.iter().any(|finding| finding["level"] == "warn" && names(finding)), "{with:?}");
    Ok(())
}

fn apply(place: &Namespace, rules: &Rules) -> Result<()> {
    match rules {
        Rules::Nft(rules) => feed(place, "nft", &["-f", "-"], rules),
        Rules::Iptables(rules) => feed(place, "iptables-nft-restore", &[], rules),
        Rules::Legacy(rules) => feed(place, "iptables-legacy-restore", &[], rules),
    }
}

fn remove(place: &Namespace, rules: &Rules) -> Result<()> {
    run(place.command("nft").args(["flush", "ruleset"]))?;
    match rules {
        Rules::Legacy(_) => feed(place, "iptables-legacy-restore", &[], "*filter\nCOMMIT\n"),
        _ => Ok(()),
    }
}

/// Runs a command with these rules.
fn feed(place: &Namespace, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    run_with_input(place.command(program).args(arguments), input).map(drop).with_context(|| input.to_owned())
}

fn open(pod: &Namespace) -> Result<bool> {
    // A rule may reject with an ICMP message.
    Ok(knock(pod, VIP, 80).is_ok_and(|(reached, _)| reached == Reached::Open))
}

/// Tries to connect so often at once that a pod counts as hanging afterwards. Returns whether it got through.
fn any_opens(pod: &Namespace) -> bool {
    thread::scope(|scope| {
        let attempts: Vec<_> = (0..HANGING_ATTEMPTS).map(|_| scope.spawn(|| open(pod))).collect();
        attempts.into_iter().any(|attempt| attempt.join().is_ok_and(|opened| opened.unwrap_or(false)))
    })
}

/// Returns the response of LOTA, and of the gateway behind it, to a request without a signature.
fn request(pod: &Namespace) -> Result<String> {
    pod.run(|| {
        let mut stream = TcpStream::connect_timeout(&(VIP, 80).into(), LONG_ENOUGH)?;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    })?
}

/// Returns what `lota status` finds about a part of a node.
pub(crate) fn finding(tour: &Tour, node: u8, part: &str) -> Result<Value> {
    let node = &tour.nodes[usize::from(node) - 1];
    // It exits with an error if there is a problem.
    let output = node.command().args(["status", "--json", "--config"]).arg(node.config()).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let findings = report["findings"].as_array().context("no findings")?;
    findings.iter().find(|finding| finding["part"] == part).cloned().context("no finding")
}

/// Returns what `lota check` finds about rules, for a configuration of a node.
pub(crate) fn check(tour: &Tour, node: u8, file: Option<&Path>) -> Result<Vec<Value>> {
    let node = &tour.nodes[usize::from(node) - 1];
    let file = file.map_or_else(|| node.config(), Path::to_owned);
    let output = node.command().args(["check", "--json"]).arg(file).output()?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(findings.into_iter().filter(|finding| finding["part"] == "rules").collect())
}

pub(crate) fn has(finding: &Value, field: &str, text: &str) -> bool {
    finding[field].as_str().is_some_and(|field| field.contains(text))
}

/// Checks that the node works. `warning` is the only one that `lota check` shows.
fn works(tour: &Tour, warning: Option<&str>) -> Result<()> {
    let pod = tour.pod(WORKING, 1);
    wait_until("the allowed pod to reach LOTA", || open(&pod))?;
    let response = request(&pod)?;
    ensure!(response.starts_with("HTTP/1.1 403 "), "{response}");
    let (reached, after) = knock(&tour.lab.pod(DENIED), VIP, 80)?;
    ensure!(reached == Reached::Refused && after < AT_ONCE, "the denied pod: {reached:?} after {after:?}");
    let findings = check(tour, WORKING, None)?;
    let warnings: Vec<_> = findings.iter().filter(|finding| finding["level"] != "ok").collect();
    match warning {
        None => ensure!(warnings.is_empty(), "lota check: {findings:?}"),
        Some(text) => ensure!(
            warnings.iter().any(|finding| finding["level"] == "warn" && has(finding, "what", text)),
            "lota check: {findings:?}"
        ),
    }
    Ok(())
}

fn named(tour: &Tour, node: u8, rule: &str, fix: &str) -> Result<()> {
    let names = |finding: &Value| has(finding, "what", rule) && has(finding, "fix", fix);
    let pod = tour.pod(node, 1);
    let mut found = Value::Null;
    let waited = wait_until("lota status to name the rule", || {
        ensure!(!any_opens(&pod), "it works");
        found = finding(tour, node, "connections")?;
        Ok(found["level"] == "fail" && names(&found))
    });
    waited.with_context(|| format!("it shows {found}"))?;
    let findings = check(tour, node, None)?;
    ensure!(
        findings.iter().any(|finding| finding["level"] == "warn" && names(finding)),
        "lota check: {findings:?}"
    );
    let shown = &lota_json(&tour.nodes[usize::from(node) - 1], &["datapath", "status"])?[0];
    let hanging = &shown["connections"]["hanging"][0];
    ensure!(hanging["interface"] == "veth-p1", "{hanging}");
    Ok(())
}
