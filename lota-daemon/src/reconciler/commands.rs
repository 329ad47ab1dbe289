//! Commands to the thread that changes the kernel side.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Result;
use lota_datapath::{AccessTable, PinnedMaps, PodLink, Subject};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;

use super::Control;

/// Command to the thread that changes the kernel side.
#[derive(Debug)]
pub enum ControlCommand {
    /// Changes the access entry of a subject. Returns the subject with the interface that it is bound to.
    Access(AccessRequest, oneshot::Sender<Result<String, ControlError>>),
    /// Reloads the configuration. Returns the changed keys that apply only after a restart.
    Reload(oneshot::Sender<Result<Vec<String>, ControlError>>),
    /// Returns the state of the kernel side.
    Status(oneshot::Sender<Result<lota_datapath::DatapathStatus, ControlError>>),
    /// Returns the access entries in the kernel's maps, and the refused addresses.
    Entrances(oneshot::Sender<Result<Entrances, ControlError>>),
}

/// Reason why a command fails.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The command contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The command names something that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The state of the daemon or its configuration file does not allow the command.
    #[error("{0}")]
    Conflict(String),
    /// The kernel refuses.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Access entries, and refused addresses with the most recent first.
pub type Entrances = (AccessTable, Vec<lota_datapath::Denied>);

/// An operator's change of an access entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequest {
    /// Change to make.
    pub verb: Verb,
    /// Address or prefix whose entry changes.
    pub subject: Subject,
    /// Interface that an allowed address is bound to; default: the interface that the address is behind.
    pub interface: Option<String>,
}

/// Change of an access entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Allows the subject until its interface is removed.
    Allow,
    /// Denies the subject, overriding all other sources.
    Deny,
    /// Removes the operator's entry; the other sources decide again.
    Forget,
}

impl Control {
    /// Executes a command and sends its result.
    pub async fn obey(&mut self, command: ControlCommand) {
        match command {
            ControlCommand::Access(request, answer) => {
                let done = self.change_access(&request).await;
                if done.is_ok() {
                    tracing::info!(verb = ?request.verb, subject = %request.subject, "access changed");
                }
                let _ = answer.send(done);
            }
            // The daemon reloads, not this thread; during a handover the next daemon reads the configuration anyway.
            ControlCommand::Reload(answer) => {
                let why = "cannot reload: another daemon takes over, which reads the configuration";
                let _ = answer.send(Err(ControlError::Conflict(why.to_owned())));
            }
            ControlCommand::Status(answer) => {
                let status = self.datapath.status(&self.interfaces, self.identity_status());
                let connections = self.connections.status();
                let status = status.map(|status| lota_datapath::DatapathStatus { connections, ..status });
                let _ = answer.send(status.map_err(Into::into));
            }
            ControlCommand::Entrances(answer) => {
                let _ = answer.send(self.entrances().map_err(Into::into));
            }
        }
    }

    fn entrances(&self) -> Result<Entrances> {
        Ok((self.datapath.access()?, PinnedMaps::new(&self.config.datapath).denied()?))
    }

    async fn change_access(&mut self, request: &AccessRequest) -> Result<String, ControlError> {
        // An address must not be bound to an interface that is gone.
        self.read_interfaces().await?;
        let (before, planned, mut at) = (self.access.clone(), self.plan(), String::new());
        let AccessRequest { verb, subject, interface } = request;
        match (verb, subject) {
            (Verb::Allow, Subject::Prefix(_)) if interface.is_some() => {
                let why = "only a single address can be bound to an interface";
                return Err(ControlError::Invalid(why.to_owned()));
            }
            (Verb::Allow, Subject::Prefix(_)) => self.access.allow(*subject, None),
            (Verb::Allow, Subject::Address(address)) => {
                let link = self.interface_of(*address, interface.as_deref()).await?;
                self.access.allow(*subject, Some(link));
                at = format!(" at {}", self.interfaces.name(link.ifindex).unwrap_or_default());
            }
            (Verb::Deny | Verb::Forget, _) if interface.is_some() => {
                return Err(ControlError::Invalid("only `allow` takes an interface".to_owned()));
            }
            (Verb::Deny, _) => self.access.deny(*subject),
            (Verb::Forget, _) => {
                if !self.access.forget(*subject) {
                    let why = format!("no operator entry exists for {subject}");
                    return Err(ControlError::NotFound(why));
                }
            }
        }
        if let Err(error) = self.apply_access() {
            // An entry that the kernel rejects must not block later changes.
            self.access = before;
            return Err(error.into());
        }
        if self.plan() != planned {
            self.attach()?;
        }
        Ok(format!("{subject}{at}"))
    }

    async fn interface_of(&self, address: IpAddr, named: Option<&str>) -> Result<PodLink, ControlError> {
        let port = match named {
            Some(name) => self
                .interfaces
                .index(name)
                .ok_or_else(|| ControlError::NotFound(format!("there is no interface `{name}`")))?,
            None => {
                let claims = self.netlink.claims(&self.interfaces, &BTreeSet::from([address])).await?;
                let may_have = self.access.kubernetes.may_have(address, &self.interfaces);
                claims.locate(address, may_have).ok_or_else(|| match claims.claimants(address) {
                    [] => ControlError::NotFound(format!(
                        "no interface leads to {address} alone; specify its --interface"
                    )),
                    several => ControlError::Conflict(format!(
                        "several interfaces may lead to {address}; specify its --interface: one of {}",
                        self.names(several)
                    )),
                })?
            }
        };
        let gone = || ControlError::NotFound(format!("the interface of {address} was removed; retry"));
        self.interfaces.pod_link(port).ok_or_else(gone)
    }
}
