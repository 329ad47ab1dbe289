//! Which pods and addresses are meant, in the peer schema of a Kubernetes NetworkPolicy
//! (<https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>). Pure: no I/O.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// One peer of a `from` list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Rule {
    /// Pods with such labels, in namespaces with such labels. Without a namespace selector, those of LOTA's own
    /// namespace; without a pod selector, all of the namespaces.
    Pods {
        /// Which namespaces.
        namespaces: Option<Selector>,
        /// Which pods there.
        pods: Option<Selector>,
    },
    /// Addresses, whoever has them.
    Block(Block),
}

/// A label selector: all of it must hold. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Requirement>,
}

/// A prefix, without some that are in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    cidr: IpNet,
    #[serde(default)]
    except: Vec<IpNet>,
}

/// What must hold of one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Expression")]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    namespace_selector: Option<Selector>,
    pod_selector: Option<Selector>,
    ip_block: Option<Block>,
}

/// A match expression as it is written.
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

impl TryFrom<Written> for Rule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written { namespace_selector: None, pod_selector: None, ip_block: Some(block) } => {
                let cidr = block.cidr.trunc();
                match block.except.iter().find(|except| **except == cidr || !cidr.contains(*except)) {
                    Some(except) => Err(format!("`except`: {except} is not a part of {cidr}")),
                    None => Ok(Self::Block(Block {
                        cidr,
                        except: block.except.iter().map(IpNet::trunc).collect(),
                    })),
                }
            }
            Written { ip_block: Some(_), .. } => Err("`ipBlock` stands alone in a rule, without selectors".into()),
            Written { namespace_selector: None, pod_selector: None, ip_block: None } => {
                Err("a rule needs `namespaceSelector`, `podSelector` or `ipBlock`; `podSelector = {}` selects all".into())
            }
            Written { namespace_selector: namespaces, pod_selector: pods, ip_block: None } => {
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
    /// Does it select a pod with these labels in `namespace`, which has those labels (`None`: not known yet)? `home`
    /// is LOTA's own namespace.
    #[must_use]
    pub fn selects(&self, pod: &Labels, namespace: &str, its: Option<&Labels>, home: &str) -> bool {
        let Self::Pods { namespaces, pods } = self else { return false };
        let in_namespace = match namespaces {
            Some(selector) => its.is_some_and(|labels| selector.matches(labels)),
            None => namespace == home,
        };
        in_namespace && pods.as_ref().is_none_or(|selector| selector.matches(pod))
    }

    /// Must pods be watched for it?
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
                // As Kubernetes has it: who lacks the label is not in.
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

/// What the blocks among `rules` say about prefixes, so that the longest that an address is in decides: an address is
/// allowed if one of the blocks has it.
#[must_use]
pub fn prefixes(rules: &[Rule]) -> BTreeMap<IpNet, bool> {
    let blocks = || {
        rules.iter().filter_map(|rule| match rule {
            Rule::Block(block) => Some(block),
            Rule::Pods { .. } => None,
        })
    };
    // Between these no block begins or ends: what holds for one as a whole holds for all of it but longer ones.
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
    fn selectors_mean_what_they_mean_in_a_network_policy() {
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
        assert!(
            !any.selects(&Labels::new(), "x", None, "home"),
            "a namespace that is not known is in no selection"
        );
    }

    #[test]
    fn what_a_network_policy_would_not_be_is_refused() {
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

    /// A few neighbouring prefixes, so that blocks meet.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (24u8..=32, 0u8..32).prop_map(|(length, last)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn an_address_is_allowed_if_a_block_has_it(
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
