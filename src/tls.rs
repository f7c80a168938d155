//! TLS: the cryptography that it is spoken with, and what the two listeners speak it with (`[http.tls]`, `[admin.tls]`).
//!
//! `files` reads what the configuration names, and says in one sentence what is wrong with it; `certificate` reads names and
//! ends of certificates; `server` is what a listener goes by, and its exchange at a reload; `client` is how the command line
//! asks the admin listener.

mod certificate;
pub mod client;
mod files;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

pub use self::{
    certificate::client_name,
    files::{Loaded, load},
    server::{Failure, ServerTls, Tls, warnings},
};

/// Makes ring the cryptography of all TLS of this process. To be called before the client of an object store is built:
/// reqwest, built without a default of its own, panics where none was chosen.
pub fn install() {
    // An error says that one was chosen before, which then stays.
    let _ = ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
