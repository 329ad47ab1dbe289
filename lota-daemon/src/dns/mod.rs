//! DNS responder on VIP:53: it answers for the endpoint's names and refuses every other name.

mod config;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};
use lota_datapath::{AccessTable, EndpointName, EndpointNames, NameKind, WhenDown};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{mpsc, watch},
};

pub use config::EndpointConfig;

use crate::{
    http::{Slots, server::accept},
    process::log_limit::LogLimit,
};

/// TTL of records, in seconds.
const TTL: u32 = 60;
/// TTL of records that are valid only while the daemon lives.
pub const SHORT_TTL: Duration = Duration::from_secs(1);
/// The largest query worth reading.
const MAX_QUERY: usize = 4096;
/// Timeout for a complete query and its response on a TCP connection.
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent TCP clients.
pub const TCP_CLIENTS: usize = 256;
/// Maximum number of concurrent TCP clients from one address.
const TCP_CLIENTS_OF_ONE: usize = 16;

static PANICS: LogLimit = LogLimit::every_ten_seconds();

/// Answers DNS queries for the endpoint's names.
#[derive(Clone, Debug)]
pub struct Responder {
    names: Arc<[ServedName]>,
    vip: Ipv4Addr,
    vip6: Option<Ipv6Addr>,
    access: watch::Receiver<Arc<AccessTable>>,
    /// Messages that caused a panic.
    panics: Counter,
}

/// A name with all names under it.
#[derive(Debug)]
struct ServedName {
    name: Name,
    kind: NameKind,
    /// TTL of its records, in seconds.
    ttl: u32,
}

impl Responder {
    /// Returns a responder that answers each name, and every name under it, with the VIPs. Names that also work without
    /// LOTA are answered to clients with access only.
    ///
    /// # Errors
    /// If a name is not a DNS name, which an [`EndpointNames`] never contains.
    pub fn new(
        names: &EndpointNames,
        vip: Ipv4Addr,
        vip6: Option<Ipv6Addr>,
        access: watch::Receiver<Arc<AccessTable>>,
    ) -> io::Result<Self> {
        let served = |name: &EndpointName| {
            let ttl = match name.when_down() {
                WhenDown::Refuse => TTL,
                WhenDown::ClusterDns => u32::try_from(SHORT_TTL.as_secs()).unwrap_or(1),
            };
            let kind = name.kind();
            let name = Name::from_ascii(format!("{name}.")).map_err(io::Error::other)?;
            Ok(ServedName { name, kind, ttl })
        };
        let names = names.iter().map(served).collect::<io::Result<_>>()?;
        Ok(Self { names, vip, vip6, access, panics: Counter::default() })
    }

    /// Returns the responder with this counter of messages that cause a panic.
    #[must_use]
    pub fn counting(self, panics: Counter) -> Self {
        Self { panics, ..self }
    }

    /// Serves UDP until the future is dropped.
    pub async fn serve_udp(&self, socket: UdpSocket) {
        let answer = |query: &[u8], client| self.answer(query, self.has_access(client));
        serve_messages(&socket, &self.panics, answer).await;
    }

    /// Serves TCP until the future is dropped; connections end with their next answer then. Each client keeps a clone of
    /// `alive` until its connection ends. A client beyond the limits replaces an idle connection, preferably one from its
    /// own address, and never waits.
    pub async fn serve_tcp(&self, listener: TcpListener, alive: mpsc::Sender<()>) {
        let slots = Slots::new(TCP_CLIENTS, TCP_CLIENTS_OF_ONE);
        let (_serving, ended) = watch::channel(());
        loop {
            let (stream, client) = accept(&listener).await;
            let Some(slot) = slots.take(client.ip().to_canonical()) else { continue };
            let (responder, alive, ended) = (self.clone(), alive.clone(), ended.clone());
            tokio::spawn(async move {
                tokio::select! {
                    _ = responder.serve_tcp_client(stream, client.ip(), ended) => {}
                    () = slot.closed() => {}
                }
                drop((slot, alive));
            });
        }
    }

    async fn serve_tcp_client(
        &self,
        mut stream: TcpStream,
        client: IpAddr,
        ended: watch::Receiver<()>,
    ) -> io::Result<()> {
        while ended.has_changed().is_ok() {
            let exchange = async {
                // RFC 1035, section 4.2.2: two bytes of length before each message.
                let length = usize::from(stream.read_u16().await?);
                if length > MAX_QUERY {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let mut query = vec![0; length];
                stream.read_exact(&mut query).await?;
                let answer = guarded(&self.panics, || self.answer(&query, self.has_access(client)));
                let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
                let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
                // In one segment: Nagle's algorithm would hold back the second.
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await
            };
            tokio::time::timeout(TCP_IDLE_TIMEOUT, exchange).await??;
        }
        Ok(())
    }

    fn has_access(&self, client: IpAddr) -> bool {
        self.access.borrow().binding(client.to_canonical()).is_some()
    }

    /// Returns the answer to one message, or `None` if the message is not a query.
    #[must_use]
    pub fn answer(&self, query: &[u8], has_access: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&query.metadata);
        answer.metadata.response_code = self.fill(&query, &mut answer, has_access);
        answer.queries = query.queries;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(1232);
            answer.edns = Some(edns);
        }
        answer.to_vec().ok()
    }

    fn fill(&self, query: &Message, answer: &mut Message, has_access: bool) -> ResponseCode {
        if query.metadata.op_code != OpCode::Query {
            return ResponseCode::NotImp;
        }
        let [question] = query.queries.as_slice() else { return ResponseCode::FormErr };
        let matching = self.names.iter().filter(|served| served.name.zone_of(question.name()));
        let Some(served) = matching.max_by_key(|served| served.name.num_labels()) else {
            return ResponseCode::Refused;
        };
        if question.query_class() != DNSClass::IN || (served.kind == NameKind::Intercepted && !has_access) {
            return ResponseCode::Refused;
        }
        answer.metadata.authoritative = true;
        let (name, ttl) = (question.name().clone(), served.ttl);
        let is_apex = name == served.name;
        match (question.query_type(), self.vip6) {
            (RecordType::A | RecordType::ANY, _) => {
                answer.add_answer(Record::from_rdata(name, ttl, RData::A(rdata::A(self.vip))));
            }
            (RecordType::AAAA, Some(vip6)) => {
                answer.add_answer(Record::from_rdata(name, ttl, RData::AAAA(rdata::AAAA(vip6))));
            }
            (RecordType::NS, _) if is_apex => {
                answer.add_answer(Record::from_rdata(name.clone(), ttl, RData::NS(rdata::NS(name))));
            }
            (RecordType::SOA, _) if is_apex => {
                answer.add_answer(served.authority());
            }
            _ => {
                answer.add_authority(served.authority());
            }
        }
        ResponseCode::NoError
    }
}

/// Answers the messages that arrive at a socket. A panic ends only the message that caused it.
async fn serve_messages(
    socket: &UdpSocket,
    panics: &Counter,
    answer: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>>,
) {
    let mut query = [0; MAX_QUERY];
    loop {
        let (length, client) = match socket.recv_from(&mut query).await {
            Ok(received) => received,
            // The kernel may report the ICMP error of an earlier answer here.
            Err(error) => {
                tracing::debug!(%error, "cannot receive a DNS query");
                tokio::task::yield_now().await;
                continue;
            }
        };
        if let Some(answer) = guarded(panics, || answer(&query[..length], client.ip())) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// Returns the answer to a message, or `None`, also if it panics, which is counted. The state of a responder does not change, so
/// that a panic leaves nothing half-done.
fn guarded(panics: &Counter, answer: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
        panics.inc();
        if let Some(left_out) = PANICS.admit() {
            tracing::error!(left_out, "a DNS query caused a panic; it is not answered");
        }
        None
    })
}

impl ServedName {
    fn authority(&self) -> Record {
        let ttl = i32::try_from(self.ttl).unwrap_or(i32::MAX);
        let soa = rdata::SOA::new(self.name.clone(), self.name.clone(), 1, ttl, ttl, ttl, self.ttl);
        Record::from_rdata(self.name.clone(), self.ttl, RData::SOA(soa))
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
    const VIP6: Option<Ipv6Addr> = Some(Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80));

    fn responder() -> Responder {
        let own = |name| EndpointName::own(name, WhenDown::Refuse).unwrap();
        let names = vec![
            own("cwlota.com"),
            own("eu.s3.internal"),
            EndpointName::own("up.test", WhenDown::ClusterDns).unwrap(),
            EndpointName::intercepted("s3.internal").unwrap(),
        ];
        let (_, access) = watch::channel(Arc::default());
        Responder::new(&EndpointNames::new(names).unwrap(), VIP, VIP6, access).unwrap()
    }

    fn ask(name: &str, kind: RecordType) -> Message {
        ask_as(name, kind, true)
    }

    fn ask_as(name: &str, kind: RecordType, has_access: bool) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query.metadata.recursion_desired = true;
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        query.edns = Some(edns);
        let answer = responder().answer(&query.to_vec().unwrap(), has_access).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
        assert!(answer.edns.is_some());
        answer
    }

    #[test]
    fn the_zone_and_every_name_under_it_resolve_to_the_vip() {
        for name in ["cwlota.com.", "bucket.cwlota.com.", "a.b.cwlota.com.", "BuCkEt.CwLoTa.CoM."] {
            let answer = ask(name, RecordType::A);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.metadata.authoritative);
            assert_eq!(answer.answers[0].data, RData::A(rdata::A(VIP)), "{name}");
            assert_eq!(answer.queries[0].name().to_string(), name, "the answer keeps the query's case");
        }
    }

    #[tokio::test]
    async fn a_tcp_client_does_not_keep_a_responder_that_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let responder = responder();
        let (alive, mut ended) = mpsc::channel(1);
        let serving = tokio::spawn(async move { responder.serve_tcp(listener, alive).await });
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("cwlota.com.").unwrap(), RecordType::A));
        let query = query.to_vec().unwrap();
        for _ in 0..2 {
            client.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
            client.write_all(&query).await.unwrap();
            let mut answer = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut answer).await.unwrap();
            serving.abort();
            tokio::time::sleep(TCP_IDLE_TIMEOUT / 50).await;
        }
        assert!(tokio::time::timeout(TCP_IDLE_TIMEOUT / 2, ended.recv()).await.is_ok(), "it is still served");
        assert!(client.read_u16().await.is_err());
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_message() {
        let (socket, client) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
        let (socket, client) = (socket.await.unwrap(), client.await.unwrap());
        client.connect(socket.local_addr().unwrap()).await.unwrap();
        let panics = Counter::default();
        let counted = panics.clone();
        let serving = tokio::spawn(async move {
            let answer =
                |query: &[u8], _| if query == b"bad" { panic!("bad query") } else { Some(query.to_vec()) };
            serve_messages(&socket, &counted, answer).await;
        });
        let mut answer = [0; 16];
        for query in [&b"bad"[..], b"one", b"bad", b"two"] {
            client.send(query).await.unwrap();
        }
        for expected in [b"one", b"two"] {
            let received = tokio::time::timeout(TCP_IDLE_TIMEOUT, client.recv(&mut answer)).await;
            assert_eq!(&answer[..received.expect("it has ended").unwrap()], expected);
        }
        assert!(!serving.is_finished());
        assert_eq!(panics.get(), 2);
    }

    #[tokio::test]
    async fn a_tcp_client_gets_no_memory_for_a_query_that_nobody_sends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, from) = listener.accept().await.unwrap();
        let responder = responder();
        let (_serving, ended) = watch::channel(());
        client.write_u16(u16::MAX).await.unwrap();
        let ended =
            tokio::time::timeout(TCP_IDLE_TIMEOUT / 2, responder.serve_tcp_client(served, from.ip(), ended))
                .await;
        assert!(ended.is_ok_and(|served| served.is_err()), "it waits for 64 KiB");
    }

    #[test]
    fn other_types_get_no_data_instead_of_nxdomain() {
        assert_eq!(ask("bucket.cwlota.com.", RecordType::AAAA).answers.len(), 1);
        let answer = ask("bucket.cwlota.com.", RecordType::MX);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(ask("cwlota.com.", RecordType::SOA).answers.len(), 1);
        assert_eq!(ask("cwlota.com.", RecordType::NS).answers.len(), 1);
    }

    #[test]
    fn each_name_has_its_zone_and_ttl() {
        for (name, zone, ttl) in [
            ("b.cwlota.com.", "cwlota.com.", 60),
            ("b.up.test.", "up.test.", 1),
            ("b.s3.internal.", "s3.internal.", 1),
            ("s3.INTERNAL.", "s3.internal.", 1),
            ("b.eu.s3.internal.", "eu.s3.internal.", 60),
            ("xeu.s3.internal.", "s3.internal.", 1),
        ] {
            let answer = ask(name, RecordType::A);
            assert_eq!(
                (&answer.answers[0].data, answer.answers[0].ttl),
                (&RData::A(rdata::A(VIP)), ttl),
                "{name}"
            );
            for kind in [RecordType::HTTPS, RecordType::TXT] {
                let answer = ask(name, kind);
                let soa = &answer.authorities[0];
                assert_eq!((soa.name.to_string().as_str(), soa.ttl), (zone, ttl), "{name}");
            }
        }
    }

    #[test]
    fn names_of_the_gateway_are_refused_to_clients_without_access() {
        let code = |name, has_access| ask_as(name, RecordType::A, has_access).metadata.response_code;
        for name in ["s3.internal.", "b.s3.internal."] {
            assert_eq!((code(name, true), code(name, false)), (ResponseCode::NoError, ResponseCode::Refused));
        }
        for name in ["cwlota.com.", "eu.s3.internal.", "up.test."] {
            assert_eq!((code(name, true), code(name, false)), (ResponseCode::NoError, ResponseCode::NoError));
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["example.com.", "notcwlota.com.", "xs3.internal.", "internal.", "com.", "."] {
            assert_eq!(ask(name, RecordType::A).metadata.response_code, ResponseCode::Refused, "{name}");
        }
    }

    proptest! {
        #[test]
        fn only_queries_are_answered_each_with_its_own_id(bytes: Vec<u8>, at in 0usize..40, value: u8) {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii("b.cwlota.com.").unwrap(), RecordType::A));
            let mut changed = query.to_vec().unwrap();
            let length = changed.len();
            changed[at % length] = value;
            for query in [bytes, changed] {
                let Some(answer) = responder().answer(&query, true) else { continue };
                prop_assert_eq!(query[2] & 0x80, 0, "a response was answered");
                let answer = Message::from_vec(&answer).unwrap();
                prop_assert_eq!(answer.metadata.id.to_be_bytes(), [query[0], query[1]]);
                prop_assert_eq!(answer.metadata.message_type, MessageType::Response);
            }
        }
    }
}
