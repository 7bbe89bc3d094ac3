//! Memory that is used again: a training step needs the same buffers as the one before, and pages fresh from the system
//! cost as much as the small layers' arithmetic.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Most values kept in idle buffers: 1 GiB. What comes back above that is freed.
const MOST: usize = 1 << 28;
/// Buffers below this many values are cheaper from the allocator than from here.
const LEAST: usize = 1 << 12;

struct Idle {
    by_length: BTreeMap<usize, Vec<Vec<f32>>>,
    values: usize,
}

static IDLE: Mutex<Idle> = Mutex::new(Idle { by_length: BTreeMap::new(), values: 0 });

/// A buffer whose values are anything: the caller overwrites all of them.
#[must_use]
pub fn take(length: usize) -> Vec<f32> {
    if length >= LEAST {
        // Buffers have no state in between that a panic could leave half done.
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = idle.by_length.get_mut(&length).and_then(Vec::pop) {
            idle.values -= length;
            return buffer;
        }
    }
    vec![0.0; length]
}

/// A buffer of zeros.
#[must_use]
pub fn zeros(length: usize) -> Vec<f32> {
    let mut buffer = take(length);
    buffer.fill(0.0);
    buffer
}

/// Takes back a buffer for the next [`take`] of this length.
pub fn give(buffer: Vec<f32>) {
    let length = buffer.len();
    if length < LEAST || buffer.capacity() != length {
        return;
    }
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.values + length <= MOST {
        idle.values += length;
        idle.by_length.entry(length).or_default().push(buffer);
    }
}

/// Frees all idle buffers.
pub fn clear() {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.values = 0;
    idle.by_length.clear();
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with a buffer of this thread, whose values are anything.
pub(crate) fn with_scratch<R>(length: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        scratch.resize(length, 0.0);
    }
    let result = work(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}
