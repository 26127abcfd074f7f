//! The Relation messages in force: the last one of each relation, as frames.

use std::collections::BTreeMap;

use crate::frame::{self, Frame};

/// By relation OID. As many as the publication has had tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Relations {
    frames: BTreeMap<u32, Box<[u8]>>,
}

impl Relations {
    /// Takes the Relation messages among these frames, which replace earlier ones of the same relation.
    pub(super) fn collect(&mut self, mut bytes: &[u8]) {
        // Frames were checked by the stream and are covered by checksums since; a bad one ends the walk.
        while let Ok(Some((frame, length))) = frame::take(bytes) {
            if let Frame::Message([b'R', a, b, c, d, ..]) = frame {
                self.frames.insert(u32::from_be_bytes([*a, *b, *c, *d]), bytes[..length].into());
            }
            bytes = &bytes[length..];
        }
    }

    /// All of them, one frame after the other.
    pub(super) fn to_frames(&self) -> Vec<u8> {
        self.frames.values().flat_map(|frame| frame.iter().copied()).collect()
    }
}
