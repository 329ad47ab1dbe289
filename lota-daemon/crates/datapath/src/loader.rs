//! Loads the programs, takes over the pinned maps, and writes what the programs decide by.

use std::{collections::BTreeMap, fs::File};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader};
use lota_common::Settings;

use crate::{
    AttachConfig, Datapath, DatapathConfig, EndpointNames, InterceptedTarget, LOOPBACK_INDEX, OBJECT,
    Targets,
    attach::{self, Hook},
    maps::{self, Maps},
    pins::Pins,
    query,
};

/// The programs, loaded with the pinned maps and not attached yet.
pub struct Loaded {
    ebpf: Ebpf,
    maps: Maps,
}

impl Loaded {
    /// Loads the programs, and creates missing maps. Does not affect a running daemon; this is the longest part of a
    /// handover.
    ///
    /// # Errors
    /// If the kernel refuses, or pinned maps have another layout.
    pub fn new(config: &DatapathConfig) -> Result<Self> {
        let folder = Pins::folder_in(&config.bpffs_path);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        maps::check_shapes(&folder)?;
        let mut loader = EbpfLoader::new();
        for shape in &maps::SHAPES {
            loader.map_pin_path(shape.name, folder.join(shape.name));
        }
        let mut ebpf = loader.load(OBJECT).context("loading the kernel side")?;
        let maps = Maps::take(&mut ebpf)?;
        attach::load(&mut ebpf).context("loading the programs")?;
        Ok(Self { ebpf, maps })
    }
}

impl Datapath {
    /// Takes over the pinned maps, and attaches the socket lookup program. Names that need the daemon are not answered
    /// before [`Datapath::set_listener`] and [`Datapath::beat`]. `lock` is the lock that the
    /// previous daemon handed over; `loaded` are the programs, if they are loaded already.
    ///
    /// # Errors
    /// If the kernel refuses, pinned maps have another layout, or another daemon holds the lock.
    pub fn load(
        config: &DatapathConfig,
        settings: Settings,
        (names, targets): (&EndpointNames, &Targets),
        lock: Option<&File>,
        loaded: Option<Loaded>,
    ) -> Result<Self> {
        let pins = Pins::open(&config.bpffs_path, lock)?;
        let Loaded { mut ebpf, mut maps } = match loaded {
            Some(loaded) => loaded,
            None => Loaded::new(config)?,
        };
        start_log(&mut ebpf);
        let lookups = attach::lookup(&mut ebpf, &pins).context("attaching at socket lookup")?;
        let targets = targets.assign(&maps.targets()?, lock.is_some());
        set_decisions(&mut maps, settings, names, &targets, lookups)?;
        Ok(Self {
            ebpf,
            maps,
            pins,
            attach: config.attach,
            redirected: BTreeMap::new(),
            beside: BTreeMap::new(),
            targets,
            is_cleared: false,
            skipped: BTreeMap::new(),
            guard: None,
            guard_problem: None,
            nat_exemption: Err("not installed yet".to_owned()),
            lookups,
            uses_tcx: config.attach != AttachConfig::Clsact
                && query::tcx(LOOPBACK_INDEX, Hook::Pod.direction()).is_ok(),
        })
    }

    /// Restores the settings, names, targets and the socket lookup program, and marks everything else to be attached again,
    /// after a successor failed that may have changed some of it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reassert(&mut self, settings: Settings, names: &EndpointNames) -> Result<()> {
        self.redirected.clear();
        self.beside.clear();
        self.is_cleared = false;
        self.maps.identity.forget();
        self.guard = None;
        attach::renew_all(&mut self.ebpf)?;
        self.lookups = attach::lookup(&mut self.ebpf, &self.pins)?;
        set_decisions(&mut self.maps, settings, names, &self.targets, self.lookups)
    }
}

/// Writes what the programs decide by, besides access, interfaces and nodes.
fn set_decisions(
    maps: &mut Maps,
    settings: Settings,
    names: &EndpointNames,
    targets: &[InterceptedTarget],
    lookups: bool,
) -> Result<()> {
    maps.set_names(names)?;
    maps.set_targets(targets)?;
    let (longest_name, targets) = (names.longest(), u16::try_from(targets.len())?);
    // Access by default is a part of the access table.
    let default_allow = maps.settings()?.default_allow;
    maps.set_settings(Settings {
        longest_name,
        targets,
        lookups: u8::from(lookups),
        default_allow,
        ..settings
    })
}

#[cfg(feature = "log")]
fn start_log(ebpf: &mut Ebpf) {
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(mut logger) => {
            tokio::spawn(async move {
                let mut often = tokio::time::interval(std::time::Duration::from_millis(100));
                loop {
                    often.tick().await;
                    logger.flush();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "cannot read the eBPF programs' log"),
    }
}

#[cfg(not(feature = "log"))]
fn start_log(_: &mut Ebpf) {}
