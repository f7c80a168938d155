//! `signature` of a `[[http.source]]`: how its sender signs what it sends, and the file with the secret that both know.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

use crate::names::words;

words! {
    /// Which headers a signature stands in, and what it is made of.
    Scheme { StandardWebhooks = "standard-webhooks", Github = "github", Stripe = "stripe" }
}

/// How the requests of a source are signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub scheme: Scheme,
    /// As it is written.
    pub secret_file: PathBuf,
    /// What stands there; nobody who signs with another is let in.
    #[serde(skip)]
    pub secrets: Secrets,
}

/// Keys for HMAC: one, or those of before and after a change. They are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Arc<Vec<Vec<u8>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Of a file's text: one a line, but for empty lines and those with a # in front.
    ///
    /// # Errors
    /// A rule. It never says what stands there.
    pub fn parse(scheme: Scheme, text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let secrets: Vec<Vec<u8>> = lines.map(|line| secret(scheme, line)).collect::<Result<_, _>>()?;
        match secrets.len() {
            0 => Err("holds no secret: write it into a line of its own, as its sender shows it".to_owned()),
            1..=MOST => Ok(Self(Arc::new(secrets))),
            more => Err(format!(
                "holds {more} secrets, and {MOST} may be, as each request is tried with all: remove old ones"
            )),
        }
    }
}

const MOST: usize = 10;
const LARGEST: u64 = 64 << 10;
/// Before the base64 of a secret of standard-webhooks.
const PREFIX: &str = "whsec_";

fn secret(scheme: Scheme, line: &str) -> Result<Vec<u8>, String> {
    match scheme {
        // Those of Stripe begin so, too, and are taken as they stand there.
        Scheme::Github | Scheme::Stripe => Ok(line.as_bytes().to_vec()),
        Scheme::StandardWebhooks => {
            let decoded = BASE64_STANDARD.decode(line.strip_prefix(PREFIX).unwrap_or(line)).ok();
            decoded.filter(|secret| !secret.is_empty()).ok_or_else(|| {
                format!("has a line that is no secret of standard-webhooks: it must be {PREFIX} and base64")
            })
        }
    }
}

impl Signature {
    /// Reads the secrets. The path is relative to the folder.
    ///
    /// # Errors
    /// A rule.
    pub(super) fn read(&mut self, folder: &Path) -> Result<(), String> {
        let path = folder.join(&self.secret_file);
        let fault = |rule: String| format!("signature.secret_file {}: {rule}", shown(&self.secret_file, folder));
        let unreadable = |error: std::io::Error| {
            fault(format!(
                "cannot be read ({error}): write it, let the user read it that the daemon runs as, or set another path"
            ))
        };
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Err(fault(format!("must be a file with one secret a line, of at most {LARGEST} bytes")));
        }
        let text = String::from_utf8(fs::read(&path).map_err(unreadable)?)
            .map_err(|_| fault("is not UTF-8: write the secret as its sender shows it".to_owned()))?;
        self.secrets = Secrets::parse(self.scheme, &text).map_err(fault)?;
        Ok(())
    }
}

/// A path. The secret itself where its file's path belongs is a slip that is soon made, and secrets may have dots and slashes: only
/// what is there is shown, or would be in a folder that is there.
fn shown(path: &Path, folder: &Path) -> String {
    let names_a_folder = |parent: &&Path| !parent.as_os_str().is_empty() && parent.parent().is_some();
    let is_in_a_folder = path.parent().filter(names_a_folder).is_some_and(|parent| folder.join(parent).is_dir());
    if is_in_a_folder || folder.join(path).exists() {
        return format!("{:?}", path.display().to_string());
    }
    "(which must be the path of a file in a folder that is there, not the secret itself)".to_owned()
}

const SIGNATURE: &str =
    "signature must be { scheme = \"standard-webhooks\", secret_file = \"/etc/ingestd/webhook-secret\" }";

/// As it stands in a source.
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    let table = value.as_table().ok_or(SIGNATURE)?;
    let mut dict = Dict::new();
    for (field, value) in table {
        let text = value.as_str();
        let value = match field.as_str() {
            "scheme" => text
                .filter(|word| Scheme::WORDS.contains(word))
                .ok_or_else(|| format!("signature.scheme must be one of {}", Scheme::WORDS.join(", ")))?,
            "secret_file" => {
                text.filter(|path| !path.is_empty()).ok_or("signature.secret_file must be the path of a file")?
            }
            "secret" => return Err("signature.secret is unknown: the secret stands in a file, secret_file".to_owned()),
            _ => return Err(format!("signature.{field} is unknown; a signature has scheme, secret_file")),
        };
        dict.insert(field.clone(), Value::from(value));
    }
    match ["scheme", "secret_file"].into_iter().find(|field| !dict.contains_key(*field)) {
        Some(field) => Err(format!("signature has no {field}: {SIGNATURE}")),
        None => Ok(Value::from(dict)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(scheme: Scheme, text: &str) -> Result<Vec<Vec<u8>>, String> {
        Secrets::parse(scheme, text).map(|secrets| secrets.iter().map(<[u8]>::to_vec).collect())
    }

    #[test]
    fn secrets_stand_one_a_line_with_comments_beside_them() {
        let text = "\u{feff}# of today\r\nwhsec_MTIz \r\n\r\n  # of before\nNDU2";
        assert_eq!(parsed(Scheme::StandardWebhooks, text), Ok(vec![b"123".to_vec(), b"456".to_vec()]));
        assert_eq!(parsed(Scheme::Stripe, "whsec_MTIz\n"), Ok(vec![b"whsec_MTIz".to_vec()]));
        assert_eq!(
            parsed(Scheme::Github, "It's a Secret to Everybody"),
            Ok(vec![b"It's a Secret to Everybody".to_vec()])
        );
        for (scheme, text, words) in [
            (Scheme::Github, "\n# only this\n", "holds no secret: write it into a line"),
            (Scheme::StandardWebhooks, "whsec_hunter2!\n", "must be whsec_ and base64"),
            (Scheme::StandardWebhooks, "whsec_", "must be whsec_ and base64"),
            (Scheme::Stripe, &"whsec_hunter2\n".repeat(11), "holds 11 secrets, and 10 may be"),
        ] {
            let rule = parsed(scheme, text).unwrap_err();
            assert!(rule.contains(words) && !rule.contains("hunter2"), "{rule}");
        }
        assert_eq!(format!("{:?}", Secrets::parse(Scheme::Github, "hunter2").unwrap()), "Secrets(1)");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_unless_it_may_be_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a.d")).unwrap();
        std::fs::write(folder.path().join("latin.txt"), b"\xe9").unwrap();
        let read = |file: &str| {
            let mut signature =
                Signature { scheme: Scheme::Github, secret_file: file.into(), secrets: Secrets::default() };
            signature.read(folder.path()).unwrap_err()
        };
        assert!(read("a.d/such").starts_with("signature.secret_file \"a.d/such\": cannot be read ("));
        assert!(read("a.d").contains("must be a file with one secret a line"));
        assert!(read("latin.txt").contains("is not UTF-8"));
        for secret in
            ["hunter2", "whsec_hunter2/x.y", "hunter2/+9Q==", "/hunter2", "It's a Secret. hunter2", "a/b.hunter2"]
        {
            let rule = read(secret);
            assert!(!rule.contains("hunter2") && rule.contains("not the secret itself"), "{rule}");
        }
    }
}
