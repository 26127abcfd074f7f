//! Encoders against values whose bytes are known.
