//! Rules that select pods and addresses, in the peer schema of a Kubernetes NetworkPolicy
//! (<https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>). Pure: no I/O.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// One peer of a `from` list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RuleSection")]
pub enum Rule {
    /// Pods selected by labels of the pod and its namespace. Without a namespace selector, only pods of LOTA's own
    /// namespace are selected; without a pod selector, all pods of the selected namespaces.
    Pods {
        /// Selector of namespaces.
        namespaces: Option<Selector>,
        /// Selector of pods in these namespaces.
        pods: Option<Selector>,
    },
    /// All addresses of a block.
    Block(Block),
}

/// A label selector. All requirements must match; an empty selector selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Requirement>,
}

/// A prefix with exceptions.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    cidr: IpNet,
    #[serde(default)]
    except: Vec<IpNet>,
}

/// Requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Expression")]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

/// A rule as written in the configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSection {
    namespace_selector: Option<Selector>,
    pod_selector: Option<Selector>,
    ip_block: Option<Block>,
}

/// A match expression as written in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: BTreeSet<String>,
}

#[derive(Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TryFrom<RuleSection> for Rule {
    type Error = String;

    fn try_from(written: RuleSection) -> Result<Self, String> {
        match written {
            RuleSection { namespace_selector: None, pod_selector: None, ip_block: Some(block) } => {
                let cidr = block.cidr.trunc();
                match block.except.iter().find(|except| **except == cidr || !cidr.contains(*except)) {
                    Some(except) => Err(format!("`except`: {except} is not a part of {cidr}")),
                    None => Ok(Self::Block(Block {
                        cidr,
                        except: block.except.iter().map(IpNet::trunc).collect(),
                    })),
                }
            }
            RuleSection { ip_block: Some(_), .. } => Err("`ipBlock` stands alone in a rule, without selectors".into()),
            RuleSection { namespace_selector: None, pod_selector: None, ip_block: None } => {
                Err("a rule needs `namespaceSelector`, `podSelector` or `ipBlock`; `podSelector = {}` selects all".into())
            }
            RuleSection { namespace_selector: namespaces, pod_selector: pods, ip_block: None } => {
                Ok(Self::Pods { namespaces, pods })
            }
        }
    }
}

impl TryFrom<Expression> for Requirement {
    type Error = String;

    fn try_from(Expression { key, operator, values }: Expression) -> Result<Self, String> {
        match (operator, values.is_empty()) {
            (Operator::In, false) => Ok(Self::In(key, values)),
            (Operator::NotIn, false) => Ok(Self::NotIn(key, values)),
            (Operator::In | Operator::NotIn, true) => Err(format!("`{key}`: this operator needs `values`")),
            (Operator::Exists, true) => Ok(Self::Exists(key)),
            (Operator::DoesNotExist, true) => Ok(Self::DoesNotExist(key)),
            (Operator::Exists | Operator::DoesNotExist, false) => {
                Err(format!("`{key}`: this operator takes no `values`"))
            }
        }
    }
}

impl Rule {
    /// Returns whether the rule selects a pod with these labels in `namespace`, whose labels are `its` (`None` if not
    /// known yet). `home` is LOTA's own namespace.
    #[must_use]
    pub fn selects(&self, pod: &Labels, namespace: &str, its: Option<&Labels>, home: &str) -> bool {
        let Self::Pods { namespaces, pods } = self else { return false };
        let in_namespace = match namespaces {
            Some(selector) => its.is_some_and(|labels| selector.matches(labels)),
            None => namespace == home,
        };
        in_namespace && pods.as_ref().is_none_or(|selector| selector.matches(pod))
    }

    /// Returns whether the rule requires a watch of pods.
    #[must_use]
    pub fn is_about_pods(&self) -> bool {
        matches!(self, Self::Pods { .. })
    }
}

impl Selector {
    fn matches(&self, labels: &Labels) -> bool {
        let has = |key: &String, values: &BTreeSet<String>| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| match requirement {
                Requirement::In(key, values) => has(key, values),
                // As in Kubernetes, `NotIn` also selects objects without the label.
                Requirement::NotIn(key, values) => !has(key, values),
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}

impl Block {
    fn covers(&self, prefix: &IpNet) -> bool {
        self.cidr.contains(prefix) && !self.except.iter().any(|except| except.contains(prefix))
    }
}

/// Returns, for the blocks among `rules`, prefixes of which the longest match decides. An address is allowed if at
/// least one block contains it.
#[must_use]
pub fn prefixes(rules: &[Rule]) -> BTreeMap<IpNet, bool> {
    let blocks = || {
        rules.iter().filter_map(|rule| match rule {
            Rule::Block(block) => Some(block),
            Rule::Pods { .. } => None,
        })
    };
    // No block begins or ends between these prefixes, so one decision holds for each, except for longer ones in it.
    let named = blocks().flat_map(|block| block.except.iter().chain([&block.cidr]));
    named.map(|prefix| (*prefix, blocks().any(|block| block.covers(prefix)))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn rules(text: &str) -> Result<Vec<Rule>, String> {
        #[derive(Deserialize)]
        struct File {
            from: Vec<Rule>,
        }
        toml::from_str::<File>(text).map(|file| file.from).map_err(|error| error.message().to_owned())
    }

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn selectors_match_as_in_a_network_policy() {
        let cases = [
            ("podSelector = {}", "", "home", "", true),
            ("podSelector = {}", "", "away", "", false),
            ("namespaceSelector = {}", "", "away", "", true),
            ("namespaceSelector = { matchLabels = { team = 'a' } }", "", "x", "team=a", true),
            ("namespaceSelector = { matchLabels = { team = 'a' } }", "", "x", "team=b", false),
            (
                "namespaceSelector = {}\npodSelector = { matchLabels = { app = 't', v = '1' } }",
                "app=t",
                "x",
                "",
                false,
            ),
            (
                "namespaceSelector = {}\npodSelector = { matchLabels = { app = 't' } }",
                "app=t,v=1",
                "x",
                "",
                true,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'In', values = ['1', '2'] }] }",
                "a=2",
                "home",
                "",
                true,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'In', values = ['1', '2'] }] }",
                "a=3",
                "home",
                "",
                false,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'NotIn', values = ['1'] }] }",
                "",
                "home",
                "",
                true,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'NotIn', values = ['1'] }] }",
                "a=1",
                "home",
                "",
                false,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'Exists' }] }",
                "a=9",
                "home",
                "",
                true,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'Exists' }] }",
                "b=9",
                "home",
                "",
                false,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'DoesNotExist' }] }",
                "b=9",
                "home",
                "",
                true,
            ),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'DoesNotExist' }] }",
                "a=9",
                "home",
                "",
                false,
            ),
        ];
        for (rule, pod, namespace, its, selected) in cases {
            let rules = rules(&format!("[[from]]\n{rule}")).unwrap();
            let seen = rules[0].selects(&labels(pod), namespace, Some(&labels(its)), "home");
            assert_eq!(seen, selected, "{rule} pod={pod} namespace={namespace}");
        }
        let any = &rules("[[from]]\nnamespaceSelector = {}").unwrap()[0];
        assert!(!any.selects(&Labels::new(), "x", None, "home"), "an unknown namespace is never selected");
    }

    #[test]
    fn rules_that_a_network_policy_does_not_allow_are_refused() {
        for (rule, why) in [
            ("", "needs `namespaceSelector`"),
            ("podSelector = {}\nipBlock = { cidr = '10.0.0.0/8' }", "stands alone"),
            ("ipBlock = { cidr = '10.0.0.0/8', except = ['11.0.0.0/16'] }", "not a part of"),
            ("ipBlock = { cidr = '10.0.0.0/8', except = ['10.0.0.0/8'] }", "not a part of"),
            ("podSelector = { matchExpressions = [{ key = 'a', operator = 'In' }] }", "needs `values`"),
            (
                "podSelector = { matchExpressions = [{ key = 'a', operator = 'Exists', values = ['1'] }] }",
                "takes no",
            ),
            ("podSelector = { matchExpressions = [{ key = 'a', operator = 'Is' }] }", "unknown variant"),
            ("podSelector = { matchLabel = {} }", "unknown field"),
            ("pod_selector = {}", "unknown field"),
        ] {
            let refused = rules(&format!("[[from]]\n{rule}")).unwrap_err();
            assert!(refused.contains(why), "{rule}: {refused}");
        }
    }

    /// Returns neighboring prefixes, so that blocks overlap.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (24u8..=32, 0u8..32).prop_map(|(length, last)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn an_address_is_allowed_if_a_block_contains_it(
            blocks in prop::collection::vec((prefix(), prop::collection::vec(prefix(), 0..4)), 0..5),
        ) {
            let blocks: Vec<Block> = blocks.into_iter().map(|(cidr, except)| Block {
                cidr,
                except: except.into_iter().filter(|except| cidr.contains(except) && *except != cidr).collect(),
            }).collect();
            let prefixes = prefixes(&blocks.iter().cloned().map(Rule::Block).collect::<Vec<_>>());
            for last in 0..64 {
                let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
                let allowed = blocks.iter().any(|block| {
                    block.cidr.contains(&address) && !block.except.iter().any(|except| except.contains(&address))
                });
                let longest = prefixes.iter().filter(|(prefix, _)| prefix.contains(&address))
                    .max_by_key(|(prefix, _)| prefix.prefix_len());
                prop_assert_eq!(longest.is_some_and(|(_, allow)| *allow), allowed, "{}", address);
            }
        }
    }
}
