//! Beginning fills, and seeing them through.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyStream;
use hyper::{Response, body::Incoming};
use tokio::sync::oneshot;

use super::{Proxy, debts::Charge, get::Get};
use crate::{
    cache::{Fill, Join, NoRoom, Object},
    gateway::FillAuthority,
    metrics::{FillLabels, Outcome},
    s3::ObjectMeta,
};

impl Proxy {
    /// The fill of this version: a new one, or the one under way. `None` if it must pass through uncached.
    pub(super) async fn join(&self, get: &Get<'_>, meta: &ObjectMeta) -> Option<(Join, Charge)> {
        let pod = get.pod;
        let Some(charge) = self.debts.charge(pod, get.not_asked(meta.size)) else {
            tracing::info!(%pod, object = %meta.version.name, "its fills have brought too much that it did not read");
            self.uncached("fill-debt");
            return None;
        };
        match self.cache.begin_fill(meta).await {
            Ok(join) => Some((join, charge)),
            Err(NoRoom(why)) => {
                tracing::info!(object = %meta.version.name, why, "passing through uncached");
                self.uncached("no-room");
                None
            }
        }
    }

    /// Begins a fill by `authority`, once the source has agreed to it, or joins the one under way. `None` if
    /// the object must pass through uncached.
    pub(super) async fn fill_from(
        self: &Arc<Self>,
        get: &Get<'_>,
        meta: &ObjectMeta,
        authority: FillAuthority,
    ) -> Option<(Arc<Object>, Outcome)> {
        let (fill, charge) = match self.join(get, meta).await? {
            (Join::Lead(fill), charge) => (fill, charge),
            (Join::Follow(object), _) => return Some((object, Outcome::Fill)),
        };
        let object = fill.object();
        let (proxy, meta, client) = (self.clone(), meta.clone(), get.head.clone());
        let tells_checksums = match &authority {
            FillAuthority::Own => true,
            FillAuthority::Client => get.object.wants_checksums,
            FillAuthority::Direct(_) => false,
        };
        let (agree, agreed) = oneshot::channel();
        // A task of its own from the first: others may wait for it when this client is gone.
        tokio::spawn(async move {
            match proxy.backend.fetch(&authority, &meta, None, &client).await {
                Ok(source) => {
                    if tells_checksums {
                        let told = meta.clone().with_checksums(source.headers());
                        fill.object().learn_checksums(&told);
                    }
                    let _ = agree.send(());
                    proxy.see_through(fill, source, &authority, charge).await;
                }
                Err(error) => {
                    let object = &meta.version.name;
                    tracing::warn!(%object, ?authority, %error, "no fill; passing through uncached");
                    proxy.uncached("fill-refused");
                }
            }
        });
        agreed.await.ok().map(|()| (object, Outcome::Miss))
    }

    /// Sees a fill through, whoever still wants it.
    pub(super) async fn see_through(
        &self,
        fill: Fill,
        source: Response<Incoming>,
        authority: &FillAuthority,
        charge: Charge,
    ) {
        let authority = match authority {
            FillAuthority::Direct(_) => "direct",
            FillAuthority::Own => "own",
            FillAuthority::Client => "client",
        };
        let name = fill.object().meta().version.name.clone();
        let source = BodyStream::new(source.into_body())
            .try_filter_map(async |frame| Ok(frame.into_data().ok()))
            .boxed();
        let end = match fill.run(source).await {
            Ok(bytes) => {
                self.metrics.fill_bytes.inc_by(bytes);
                charge.keep();
                "complete"
            }
            Err(error) => {
                tracing::warn!(object = %name, authority, %error, "fill broke off");
                "broken"
            }
        };
        self.metrics.fills.get_or_create(&FillLabels { authority, end }).inc();
    }
}
