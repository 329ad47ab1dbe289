//! Beginning fills, and seeing them through.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::BodyStream;
use hyper::{Response, StatusCode, body::Incoming};
use tokio::sync::oneshot;

use super::{Proxy, debts::Charge, get::Get};
use crate::{
    backend::{self, FetchError},
    cache::{Fill, How, Join, NoRoom, Object, Source, SourceError},
    gateway::{Answer, DirectPath, FillAuthority},
    http::{Head, upstream::chain},
    metrics::{Fault, FillLabels, Outcome},
    peer::headers::Wanted,
    placement::NodeName,
    s3::{ByteRange, ObjectMeta, Validator},
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

    /// Begins a fill by `authority`, once the source has agreed to it, or joins the one under way: from `sibling`, as
    /// long as that has the object. `None` if the object must pass through uncached.
    pub(super) async fn fill_from(
        self: &Arc<Self>,
        get: &Get<'_>,
        meta: &ObjectMeta,
        authority: FillAuthority,
        sibling: Option<NodeName>,
    ) -> Option<(Arc<Object>, Outcome)> {
        match self.begin_fill_from(get, meta, authority, sibling).await? {
            (object, Some(agreed)) => agreed.await.ok().map(|()| (object, Outcome::Miss)),
            (object, None) => Some((object, Outcome::Fill)),
        }
    }

    /// The same, without waiting for the source. If the fill is new, tells when that has agreed.
    pub(super) async fn begin_fill_from(
        self: &Arc<Self>,
        get: &Get<'_>,
        meta: &ObjectMeta,
        authority: FillAuthority,
        sibling: Option<NodeName>,
    ) -> Option<(Arc<Object>, Option<oneshot::Receiver<()>>)> {
        let (fill, charge) = match self.join(get, meta).await? {
            (Join::Lead(fill), charge) => (fill, charge),
            (Join::Follow(object), _) => return Some((object, None)),
        };
        let object = fill.object();
        if let Ok(Some(range)) = get.object.range.resolve(meta.size) {
            fill.begin_at(range.start);
        }
        // A client's own request is good for a quarter of an hour only: one that has begun goes on to its end.
        let how = match authority {
            _ if sibling.is_some() => How::Parts,
            FillAuthority::Own | FillAuthority::Direct(_) if meta.size > 0 => How::Parts,
            _ => How::Stream,
        };
        let (agree, agreed) = oneshot::channel();
        let mut supply = Supply::new(self, get, object.clone(), authority, Some(agree));
        supply.sibling = Mutex::new(sibling);
        // A task of its own from the first: others may wait for it when this client is gone.
        tokio::spawn(supply.see_through(fill, how, charge));
        Some((object, Some(agreed)))
    }

    /// Fills with what is arriving from the gateway.
    pub(super) fn fill_with(
        self: &Arc<Self>,
        get: &Get<'_>,
        fill: Fill,
        arriving: Response<Incoming>,
        charge: Charge,
    ) {
        let authority = match self.backend.has_own_credential() {
            true => FillAuthority::Own,
            false => FillAuthority::Client,
        };
        let how = How::Arriving(bytes_of(arriving));
        let supply = Supply::new(self, get, fill.object(), authority, None);
        tokio::spawn(supply.see_through(fill, how, charge));
    }
}

/// Where a fill's bytes come from, and by what right.
struct Supply {
    proxy: Arc<Proxy>,
    pod: IpAddr,
    object: Arc<Object>,
    /// Another owner that has it whole, as long as it sends.
    sibling: Mutex<Option<NodeName>>,
    authority: Mutex<FillAuthority>,
    renewing: tokio::sync::Mutex<()>,
    client: Head,
    /// Do answers for the whole object tell its checksums?
    tells_checksums: bool,
    /// Told when the source has sent something.
    agree: Mutex<Option<oneshot::Sender<()>>>,
}

impl Supply {
    fn new(
        proxy: &Arc<Proxy>,
        get: &Get<'_>,
        object: Arc<Object>,
        authority: FillAuthority,
        agree: Option<oneshot::Sender<()>>,
    ) -> Self {
        let tells_checksums = match &authority {
            FillAuthority::Own => true,
            FillAuthority::Client => get.object.wants_checksums,
            FillAuthority::Direct(_) => false,
        };
        Self {
            proxy: proxy.clone(),
            pod: get.pod,
            object,
            sibling: Mutex::default(),
            authority: Mutex::new(authority),
            renewing: tokio::sync::Mutex::default(),
            client: get.head.clone(),
            tells_checksums,
            agree: Mutex::new(agree),
        }
    }

    /// Sees a fill through, whoever still wants it.
    async fn see_through(self, fill: Fill, how: How, charge: Charge) {
        let proxy = self.proxy.clone();
        let authority = match (&how, &*lock(&self.authority)) {
            _ if lock(&self.sibling).is_some() => "sibling",
            (How::Arriving(_), _) | (_, FillAuthority::Client) => "client",
            (_, FillAuthority::Direct(_)) => "direct",
            (_, FillAuthority::Own) => "own",
        };
        let name = &self.object.meta().version.name;
        let end = match fill.run(&self, how).await {
            Ok(bytes) => {
                proxy.metrics.fill_bytes.inc_by(bytes);
                charge.keep();
                "complete"
            }
            Err(error) if lock(&self.agree).is_some() => {
                tracing::warn!(object = %name, authority, %error, "no fill; passing through uncached");
                proxy.uncached("fill-refused");
                proxy.metrics.fault(Fault::SourceRefused);
                return;
            }
            Err(error) => {
                tracing::warn!(object = %name, authority, %error, "fill broke off");
                proxy.metrics.fault(Fault::FillBroken);
                "broken"
            }
        };
        proxy.metrics.fills.get_or_create(&FillLabels { authority, end }).inc();
    }

    /// Answers for ranges do not tell the checksums of the whole.
    fn learn_checksums(&self) {
        let (proxy, object) = (self.proxy.clone(), self.object.clone());
        if self.tells_checksums && proxy.backend.has_own_credential() && !object.meta().checksums_known {
            tokio::spawn(async move {
                if let Ok(told) = proxy.backend.tell(object.meta()).await {
                    object.learn_checksums(&told);
                }
            });
        }
    }

    async fn ask(&self, range: Option<ByteRange>) -> Result<Response<Incoming>, FetchError> {
        let (meta, authority) = (self.object.meta(), lock(&self.authority).clone());
        let sibling = lock(&self.sibling).clone();
        if let Some(sibling) = sibling {
            let range = range.unwrap_or(ByteRange { start: 0, end: meta.size });
            match self.ask_sibling(&sibling, range).await {
                Ok(answer) => return Ok(answer),
                Err(why) => {
                    tracing::info!(sibling = %sibling.0, object = %meta.version.name, why, "filling from the source");
                    *lock(&self.sibling) = None;
                }
            }
        }
        let asked = self.proxy.backend.fetch(&authority, meta, range, &self.client).await;
        match (&authority, &asked) {
            // It has expired, perhaps, in a long fill.
            (FillAuthority::Direct(used), Err(FetchError::Status(StatusCode::FORBIDDEN)))
                if self.has_agreed() =>
            {
                match self.renewed(used).await {
                    Some(authority) => self.proxy.backend.fetch(&authority, meta, range, &self.client).await,
                    None => asked,
                }
            }
            _ => asked,
        }
    }

    async fn ask_sibling(&self, sibling: &NodeName, range: ByteRange) -> Result<Response<Incoming>, String> {
        let (meta, peers) = (self.object.meta(), self.proxy.peers.as_ref().ok_or("there are no peers")?);
        let asked = peers.ask(sibling, self.pod, &self.client, Wanted::Part(range)).await;
        let answer = asked.map_err(|error| error.to_string())?;
        backend::check(meta, Some(range), answer.status(), answer.headers())
            .map_err(|error| error.to_string())?;
        match Validator::of(answer.headers()) {
            Some(validator) if validator == meta.version.validator => Ok(answer),
            _ => Err("it has another version".into()),
        }
    }

    /// A direct path instead of the one that was `used`; one for all who used it.
    async fn renewed(&self, used: &DirectPath) -> Option<FillAuthority> {
        let _one = self.renewing.lock().await;
        match &*lock(&self.authority) {
            FillAuthority::Direct(path) if path.uri() == used.uri() => {}
            renewed => return Some(renewed.clone()),
        }
        let version = &self.object.meta().version;
        match self.proxy.gateway.authorize(&self.client, &version.name, None).await {
            Ok(Answer::Direct(_, told, path)) if told.version == *version => {
                *lock(&self.authority) = FillAuthority::Direct(path.clone());
                Some(FillAuthority::Direct(path))
            }
            _ => None,
        }
    }

    /// Has the source sent something already?
    fn has_agreed(&self) -> bool {
        lock(&self.agree).is_none()
    }
}

impl Source for Supply {
    async fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        // Who waits for its word has another way.
        let answer =
            self.ask(range).await.map_err(|error| match error.is_passing() && self.has_agreed() {
                true => SourceError::Passing(error.to_string()),
                false => SourceError::Final(error.to_string()),
            })?;
        let whole = answer.status() == StatusCode::OK;
        if whole && self.tells_checksums {
            let told = self.object.meta().clone().with_checksums(answer.headers());
            self.object.learn_checksums(&told);
        }
        if let Some(agree) = lock(&self.agree).take() {
            let _ = agree.send(());
            if !whole {
                self.learn_checksums();
            }
        }
        Ok(bytes_of(answer))
    }
}

fn bytes_of(answer: Response<Incoming>) -> BoxStream<'static, Result<Bytes, String>> {
    let frames = BodyStream::new(answer.into_body());
    frames.map_err(|error| chain(&error)).try_filter_map(async |frame| Ok(frame.into_data().ok())).boxed()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
