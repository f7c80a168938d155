//! The cryptography that TLS is spoken with.

/// Makes ring the cryptography of all TLS of this process. To be called before the client of an object store is built:
/// reqwest, built without a default of its own, panics where none was chosen.
pub fn install() {
    // An error says that one was chosen before, which then stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
