//! Operations of clients.

use rand::{Rng as _, rngs::StdRng};

use super::content::LARGE_BLOCKS;

/// One of this number of operations is a write.
const OPERATIONS_PER_WRITE: u32 = 6;
/// One of this number of writes deletes the object.
const WRITES_PER_DELETION: u32 = 6;

/// A request that is repeated with the same meaning.
#[derive(Clone, Copy, Debug)]
pub(super) enum LoadAction {
    Get,
    /// Of blocks, beginning with the first number, as many as the second.
    GetRange(usize, usize),
    Head,
    Put,
    Delete,
}

impl LoadAction {
    /// Selects one at random.
    pub(super) fn any(random: &mut StdRng, is_large: bool) -> Self {
        match random.random_ratio(1, OPERATIONS_PER_WRITE) {
            true if random.random_ratio(1, WRITES_PER_DELETION) => Self::Delete,
            true => Self::Put,
            false => match random.random_range(0..6) {
                0 => Self::Head,
                1 | 2 if is_large => {
                    let first = random.random_range(0..LARGE_BLOCKS);
                    Self::GetRange(first, random.random_range(1..=LARGE_BLOCKS - first))
                }
                1 | 2 => Self::GetRange(0, 1),
                _ => Self::Get,
            },
        }
    }
}
