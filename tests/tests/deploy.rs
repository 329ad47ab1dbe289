//! Renderings of `deploy/`: the chart and Kustomize agree, Kubernetes' schemas and the daemon accept them, and
//! invalid values are rejected.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it wants fails")]

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/kustomize.rs"]
mod kustomize;
#[path = "deploy/preflight.rs"]
mod preflight;
#[path = "deploy/render.rs"]
mod render;
