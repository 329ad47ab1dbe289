//! Fences: proof, by one shared question, that earlier decisions of a gateway still hold. Without I/O.
//!
//! A node that serves a hit needs a decision of the gateway that holds at a moment after the request arrived. Asking for each
//! request is one way. A fence is the other:
//!
//! 1. The gateway counts changes in *cells* ([`ChangeCells`]): those of a group of keys, those of what a principal may do. With a
//!    decision, it states the cells that the decision depends on and their numbers, a [`Basis`].
//! 2. A node remembers the decision with its basis. For the next request of the same principal and object, it asks for the numbers
//!    of these cells only. One question, a *fence*, serves all requests that arrived before it was sent ([`FenceQueue`]).
//! 3. If every number is the one in the basis, nothing has changed in between, and the decision holds at the moment at which the
//!    gateway read the numbers ([`Basis::holds`]). Otherwise, the node asks for a decision.
//!
//! The rules by which this is exact are those of the types here. The tests explore every interleaving of a small cluster with
//! them, and find a violation when any one of the rules is broken.

mod answer;
mod basis;
mod cells;
mod name;
mod queue;

pub use answer::FenceAnswer;
pub use basis::{Basis, InvalidBasis};
pub use cells::{ChangeCells, OpenChange};
pub use name::{CellName, ChangeNumber, InstanceId};
pub use queue::{Fence, FenceId, FenceQueue};

#[cfg(test)]
mod model;
