//! What stands in front of the ingest listener in a row: TLS, a key, schemas of the events' types.

use std::{fs, sync::Arc};

use rustls::ClientConfig;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{
    rows::Door,
    support::{daemon::Setup, scratch, tls::Certificates},
};

const KEY: &str = "ingestd_bench-key";
/// As login events are described by those who use them: each field with its type, the formats of some, those that must be there.
const SCHEMA: &str = r#"{
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["type", "client_id", "timestamp", "user_id", "ip"],
    "properties": {
        "type": { "type": "string", "enum": ["login_success", "login_failure"] },
        "client_id": { "type": "string", "minLength": 1, "maxLength": 64 },
        "timestamp": { "type": "string", "minLength": 20, "maxLength": 35 },
        "user_id": { "type": "string", "pattern": "^u-[0-9a-f]{8}$" },
        "session": { "type": "string", "minLength": 32, "maxLength": 32 },
        "ip": { "type": "string", "maxLength": 45 },
        "agent": { "type": "string", "maxLength": 500 },
        "mfa": { "type": "boolean" },
        "duration_ms": { "type": "integer", "minimum": 0 }
    }
}"#;

/// An open one has none of them.
pub struct Standing {
    door: Door,
    certificates: Option<Certificates>,
    folder: Option<TempDir>,
    fields: String,
}

pub fn open(door: Door) -> Standing {
    let is_tls = matches!(door, Door::Tls | Door::All);
    let folder = (door == Door::All).then(|| {
        let folder = tempfile::Builder::new().prefix("door").tempdir_in(scratch()).expect("target can be written to");
        fs::write(folder.path().join("login.json"), SCHEMA).expect("it can be written");
        folder
    });
    let fields = if door == Door::All { format!("Authorization: Bearer {KEY}\r\n") } else { String::new() };
    Standing { door, certificates: is_tls.then(Certificates::new), folder, fields }
}

impl Standing {
    /// What each request says.
    pub fn fields(&self) -> &str {
        &self.fields
    }

    /// The client's side of TLS.
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.certificates.as_ref().map(|made| made.client(None))
    }

    pub fn before(&self, mut setup: Setup) -> Setup {
        if let Some(made) = &self.certificates {
            setup = setup.set("http.tls.cert", made.text("server.pem")).set("http.tls.key", made.text("server.key"));
        }
        if let (Door::All, Some(folder)) = (self.door, &self.folder) {
            let hash = hex::encode(Sha256::digest(KEY));
            let schema = folder.path().join("login.json");
            let of = |name| format!("{{ name = \"{name}\", schema = \"{}\" }}", schema.display());
            setup = setup
                .set("http.auth.keys", format!("[{{ name = \"bench\", hash = \"sha256:{hash}\" }}]"))
                .set("event.types", format!("[{}, {}]", of("login_success"), of("login_failure")));
        }
        setup
    }
}
