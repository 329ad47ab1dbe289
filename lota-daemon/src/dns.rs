//! Names: a small responder on VIP:53 that answers for the zone and refuses the rest.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc},
};

use crate::{http::server::accept, s3::Zone};

/// How long resolvers may keep an answer, in seconds.
const TTL: u32 = 60;
/// The largest UDP query worth reading.
const MAX_QUERY: usize = 4096;
/// Longest a TCP client may be idle.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most TCP clients at once.
const TCP_CLIENTS: usize = 64;

/// Answers for one zone.
#[derive(Clone, Debug)]
pub struct Responder {
    zone: Name,
    vip: Ipv4Addr,
    vip6: Option<Ipv6Addr>,
}

impl Responder {
    /// A responder that answers the zone's apex, and every name under it, with the virtual addresses.
    ///
    /// # Errors
    /// If the zone is not a DNS name, which a parsed [`Zone`] always is.
    pub fn new(zone: &Zone, vip: Ipv4Addr, vip6: Option<Ipv6Addr>) -> io::Result<Self> {
        let zone = Name::from_ascii(format!("{}.", zone.as_str())).map_err(io::Error::other)?;
        Ok(Self { zone, vip, vip6 })
    }

    /// Serves UDP for as long as it is polled.
    pub async fn serve_udp(&self, socket: UdpSocket) {
        let mut query = [0; MAX_QUERY];
        loop {
            let (length, client) = match socket.recv_from(&mut query).await {
                Ok(received) => received,
                // An earlier answer's ICMP error, perhaps, which is reported here.
                Err(error) => {
                    tracing::debug!(%error, "receiving a name query");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            if let Some(answer) = self.answer(&query[..length]) {
                let _ = socket.send_to(&answer, client).await;
            }
        }
    }

    /// Serves TCP for as long as it is polled. Each client keeps a clone of `alive` until it is answered.
    pub async fn serve_tcp(&self, listener: TcpListener, alive: mpsc::Sender<()>) {
        let places = Arc::new(Semaphore::new(TCP_CLIENTS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, _) = accept(&listener).await;
            let (responder, alive) = (self.clone(), alive.clone());
            tokio::spawn(async move {
                let _kept = (place, alive);
                let _ = responder.serve_tcp_client(stream).await;
            });
        }
    }

    async fn serve_tcp_client(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let exchange = async {
                // RFC 1035, section 4.2.2: two bytes of length before each message.
                let length = stream.read_u16().await?;
                let mut query = vec![0; usize::from(length)];
                stream.read_exact(&mut query).await?;
                let answer = self.answer(&query).ok_or(io::ErrorKind::InvalidData)?;
                stream.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
                stream.write_all(&answer).await
            };
            tokio::time::timeout(PATIENCE, exchange).await??;
        }
    }

    /// The answer to one message; `None` to what is no query.
    #[must_use]
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&query.metadata);
        answer.metadata.response_code = self.fill(&query, &mut answer);
        answer.queries = query.queries;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(1232);
            answer.edns = Some(edns);
        }
        answer.to_vec().ok()
    }

    fn fill(&self, query: &Message, answer: &mut Message) -> ResponseCode {
        if query.metadata.op_code != OpCode::Query {
            return ResponseCode::NotImp;
        }
        let [question] = query.queries.as_slice() else { return ResponseCode::FormErr };
        if !self.zone.zone_of(question.name()) || question.query_class() != DNSClass::IN {
            return ResponseCode::Refused;
        }
        answer.metadata.authoritative = true;
        let name = question.name().clone();
        let apex = name == self.zone;
        match (question.query_type(), self.vip6) {
            (RecordType::A | RecordType::ANY, _) => {
                answer.add_answer(Record::from_rdata(name, TTL, RData::A(rdata::A(self.vip))));
            }
            (RecordType::AAAA, Some(vip6)) => {
                answer.add_answer(Record::from_rdata(name, TTL, RData::AAAA(rdata::AAAA(vip6))));
            }
            (RecordType::NS, _) if apex => {
                answer.add_answer(Record::from_rdata(name.clone(), TTL, RData::NS(rdata::NS(name))));
            }
            (RecordType::SOA, _) if apex => {
                answer.add_answer(self.authority());
            }
            _ => {
                answer.add_authority(self.authority());
            }
        }
        ResponseCode::NoError
    }

    fn authority(&self) -> Record {
        let zone = self.zone.clone();
        let ttl = i32::try_from(TTL).unwrap_or(i32::MAX);
        let soa = rdata::SOA::new(zone.clone(), zone.clone(), 1, ttl, ttl, ttl, TTL);
        Record::from_rdata(zone, TTL, RData::SOA(soa))
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
    const VIP6: Option<Ipv6Addr> = Some(Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80));

    fn ask(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query.metadata.recursion_desired = true;
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        query.edns = Some(edns);
        let responder = Responder::new(&Zone::parse("cwlota.com").unwrap(), VIP, VIP6).unwrap();
        let answer = Message::from_vec(&responder.answer(&query.to_vec().unwrap()).unwrap()).unwrap();
        assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
        assert!(answer.edns.is_some());
        answer
    }

    #[test]
    fn the_zone_and_every_name_under_it_are_the_vip() {
        for name in ["cwlota.com.", "bucket.cwlota.com.", "a.b.cwlota.com.", "BuCkEt.CwLoTa.CoM."] {
            let answer = ask(name, RecordType::A);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.metadata.authoritative);
            assert_eq!(answer.answers[0].data, RData::A(rdata::A(VIP)), "{name}");
            assert_eq!(answer.queries[0].name().to_string(), name, "the case of the question is kept");
        }
    }

    #[test]
    fn other_types_are_no_data_rather_than_no_name() {
        assert_eq!(ask("bucket.cwlota.com.", RecordType::AAAA).answers.len(), 1);
        let answer = ask("bucket.cwlota.com.", RecordType::MX);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(ask("cwlota.com.", RecordType::SOA).answers.len(), 1);
        assert_eq!(ask("cwlota.com.", RecordType::NS).answers.len(), 1);
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["example.com.", "notcwlota.com.", "com.", "."] {
            assert_eq!(ask(name, RecordType::A).metadata.response_code, ResponseCode::Refused, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let responder = Responder::new(&Zone::parse("cwlota.com").unwrap(), VIP, VIP6).unwrap();
            let _ = responder.answer(&bytes);
        }
    }
}
