//! What `deploy/` renders to: the chart and Kustomize say the same, Kubernetes' schemas and the daemon take it, wrong
//! values are refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it wants fails")]

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/kustomize.rs"]
mod kustomize;
#[path = "deploy/render.rs"]
mod render;
