//! The admin endpoint of a running daemon, as a command is told where it is and what to show it.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use rustls::ClientConfig;

use super::{Options, load, terminal::one_line};
use crate::{
    config::Config,
    log::dead_letters::client::AdminClient,
    names::exit,
    tls::client::{self as tls, Trust},
};

#[derive(Debug, Args)]
pub(super) struct Endpoint {
    /// The daemon's admin endpoint; without it admin.listen of the configuration
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The CAs of the admin endpoint's certificate (PEM); without it the certificate in admin.tls.cert of the configuration,
    /// or the system's CAs
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show it (PEM), where it asks for one (admin.tls.client_ca)
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// That certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// The key, where the admin listener asks for one (admin.auth.keys); other users of this machine may see it here, and not in
    /// the environment
    #[arg(long = "key", value_name = "KEY", env = "INGESTD_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// Says on stderr why a command ends with this status.
pub(super) fn failed(command: &str, exit: u8, why: &dyn Display) -> ExitCode {
    eprintln!("ingestd {command}: {}", one_line(&why.to_string()));
    ExitCode::from(exit)
}

impl Endpoint {
    /// Who asks the daemon for this command, which can do nothing without one; or it has said on stderr why not.
    pub fn asked_by(&self, command: &str, options: Options) -> Result<AdminClient, ExitCode> {
        let config = load(&options.sources())?;
        match self.client(&config) {
            Ok(Some(client)) => Ok(client),
            Ok(None) => {
                let why = "admin.listen has a port that is chosen at the start: say where it is by --admin URL";
                Err(failed(command, 2, &why))
            }
            Err((exit, why)) => Err(failed(command, exit, &why)),
        }
    }

    /// Whether the command names it itself, in the place of the configuration.
    pub fn is_named(&self) -> bool {
        self.admin.is_some()
    }

    /// Who asks it; `None` where the configuration has a port that is chosen at the start. An error is the exit status and why.
    pub fn client(&self, config: &Config) -> Result<Option<AdminClient>, (u8, String)> {
        let usage = |why: String| (2, why);
        let key = self.key().map_err(usage)?;
        let own = url_of(config);
        if let Some(url) = &self.admin {
            let tls = self.tls(url, config, own.as_ref() == Some(url)).map_err(usage)?;
            return AdminClient::new(url, key, tls).map(Some).map_err(|why| (2, format!("--admin: {why}")));
        }
        let Some(url) = own else { return Ok(None) };
        let tls = self.tls(&url, config, true).map_err(usage)?;
        let client = AdminClient::new(&url, key, tls);
        client.map(Some).map_err(|why| (exit::CONFIGURATION, format!("admin.listen: {why}: give --admin URL")))
    }

    /// As it is sent. (clap's own refusal would say what it was given.)
    fn key(&self) -> Result<Option<&str>, String> {
        let Some(text) = self.key.as_deref().map(str::trim) else { return Ok(None) };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "--key (INGESTD_KEY): a key is one word of letters, digits and signs, as `ingestd key new` printed it"
                    .to_owned(),
            );
        }
        Ok(Some(text))
    }

    /// `None` where the URL asks for none. `is_own` is whether the endpoint is the one of the configuration.
    fn tls(&self, url: &str, config: &Config, is_own: bool) -> Result<Option<Arc<ClientConfig>>, String> {
        if !url.starts_with("https://") {
            return Ok(None);
        }
        let own = config.tls()[1].filter(|_| is_own);
        let trust = match (&self.ca, own) {
            (Some(ca), _) => Trust::authorities(ca)?,
            (None, Some(own)) => Trust::exactly(own.cert).map_err(|why| format!("{why}; or give --ca FILE"))?,
            (None, None) => Trust::System,
        };
        tls::client(trust, self.cert.as_deref().zip(self.cert_key.as_deref())).map(Some)
    }
}

/// Where to reach what listens on `admin.listen`; `None` for a port that is chosen at the start.
fn url_of(config: &Config) -> Option<String> {
    let (listen, [_, scheme]) = (&config.admin.listen, config.schemes());
    let Ok(mut address) = listen.parse::<SocketAddr>() else { return Some(format!("{scheme}://{listen}")) };
    if address.port() == 0 {
        return None;
    }
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    Some(format!("{scheme}://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_address_is_asked_where_it_can_be_reached() {
        for (listen, url) in [
            ("127.0.0.1:9600", Some("http://127.0.0.1:9600")),
            ("0.0.0.0:9600", Some("http://127.0.0.1:9600")),
            ("[::]:9600", Some("http://[::1]:9600")),
            ("admin.local:9600", Some("http://admin.local:9600")),
            ("127.0.0.1:0", None),
        ] {
            let mut config = Config::default();
            config.admin.listen = listen.to_owned();
            assert_eq!(url_of(&config).as_deref(), url, "{listen}");
            config.admin.tls.cert = "cert.pem".to_owned();
            let url = url.map(|url| url.replace("http", "https"));
            assert_eq!(url_of(&config), url, "{listen}");
        }
    }
}
