//! What a topic section says, through the daemon and a real broker.
