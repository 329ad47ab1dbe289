//! A scripted raw HTTP/1.1 gateway for tests.
//!
//! It is a separate package because unit tests of `lota-daemon` (as a dev-dependency) and the lab's suites
//! (`lota_tests::lab::scripted`) use it.
//!
//! ```ignore
//! // 1. A function: one answer for each request.
//! let gateway = ScriptedGateway::start(|request: &SeenRequest| match request.header("if-none-match") {
//!     Some(_) => Answer::status(304).header("etag", "\"e\"").extra(Duration::from_millis(5), "late bytes"),
//!     None => Answer::status(200).header("etag", "\"e\"").body("bytes").declared_length(9).close(),
//! })
//! .await;
//! // 2. A correct gateway with objects, and one named misbehaviour.
//! let correct = CorrectGateway::new().object("/b/k", StoredObject::new("bytes"));
//! let gateway = ScriptedGateway::start(Misbehaviour::CacheByUrl.script(correct)).await;
//! // 3. A change of the script at run time, and the requests seen so far.
//! gateway.set_script(|_: &SeenRequest| Answer::status(503));
//! assert_eq!(gateway.seen()[0].target, "/b/k");
//! ```
//!
//! | Item | Use |
//! |---|---|
//! | [`ScriptedGateway`] | `start`, `serve(listener, …)` (for a namespace of the lab), `endpoint`, `address`, `seen`, `connections`, `set_script` |
//! | [`SeenRequest`] | `method`, `target`, `headers`, `body`, `connection`; `header(name)`, `path()`, `query(name)` |
//! | [`Answer`] | `status`, `raw`, `silence`; then `header`, `body`, `declared_length`, `delay`, `wait_for`, `extra`, `truncate`, `close`, `reset` |
//! | [`CorrectGateway`] | Objects with `GET`, `HEAD`, `PUT`, `DELETE`, ranges, conditions, and an access rule |
//! | [`Misbehaviour`] | Named deviations from a correct gateway |
//! | [`Authority`] | Certificates and revocation lists, valid or not |

mod answer;
mod authority;
mod correct;
mod misbehaviour;
mod server;

pub use answer::{Answer, Step};
pub use authority::{Authority, CertificatePlan, DAY, IssuedCertificate};
pub use correct::{Access, CorrectGateway, StoredObject};
pub use misbehaviour::Misbehaviour;
pub use server::{Script, ScriptedGateway, SeenRequest};

#[cfg(test)]
mod tests;
