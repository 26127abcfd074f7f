//! Truths that are known without a server.
