//! The dashboard: a page at `/`, and what it is made of below `/assets/`.
//!
//! Page and assets hold no data, so they need no key: the page asks this listener's other paths, as any client does, with the key
//! that its reader gives it. Its policy lets it run what stands here, talk to this listener, and nothing else: no inline script
//! or style, no other host, no frame around it. There is no build step: the files below `dashboard/` are what a browser gets.
//!
//! | file | |
//! | --- | --- |
//! | `index.html`, `dashboard.css`, `icon.svg` | the page |
//! | `main.js` | begins: the views, the theme, the key |
//! | `api.js` | asks this listener: the key, problems, the live stream |
//! | `overview.js`, `aggregates.js`, `letters.js`, `configuration.js` | a view each |
//! | `question.js` | what is asked of an aggregate |
//! | `chart.js`, `page.js`, `format.js` | charts, parts of pages, numbers and times as people read them |
//! | `uplot.js`, `uplot.css` | uPlot 1.6.32 (`uPlot.iife.min.js`, `uPlot.min.css`; MIT, `uplot.LICENSE`), as npm has it |

use std::sync::OnceLock;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    web,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::exposition;
use crate::http::Problem;

/// Where the page's parts are.
const FOLDER: &str = "/assets/";

/// Scripts and styles are assets; charts are drawn, and set the style of their own elements, which a policy on styles allows.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

macro_rules! asset {
    ($name:literal, $media_type:expr) => {
        Asset {
            name: $name,
            media_type: $media_type,
            text: include_str!(concat!("dashboard/", $name)),
            packed: OnceLock::new(),
        }
    };
}

static PAGE: Asset = asset!("index.html", "text/html; charset=utf-8");
static ASSETS: [Asset; 15] = [
    asset!("dashboard.css", CSS),
    asset!("icon.svg", "image/svg+xml"),
    asset!("main.js", JAVASCRIPT),
    asset!("api.js", JAVASCRIPT),
    asset!("overview.js", JAVASCRIPT),
    asset!("aggregates.js", JAVASCRIPT),
    asset!("question.js", JAVASCRIPT),
    asset!("letters.js", JAVASCRIPT),
    asset!("configuration.js", JAVASCRIPT),
    asset!("chart.js", JAVASCRIPT),
    asset!("page.js", JAVASCRIPT),
    asset!("format.js", JAVASCRIPT),
    asset!("uplot.js", JAVASCRIPT),
    asset!("uplot.css", CSS),
    // Copies have it with them.
    asset!("uplot.LICENSE", "text/plain; charset=utf-8"),
];

/// A file that a browser is given as it is.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
    /// Made when it is asked for first.
    packed: OnceLock<Packed>,
}

struct Packed {
    gzip: Bytes,
    /// Of the text. It is weak, since the bytes differ by the coding.
    tag: String,
}

impl Asset {
    fn find(name: &str) -> Option<&'static Self> {
        ASSETS.iter().find(|asset| asset.name == name)
    }

    fn packed(&self) -> &Packed {
        self.packed.get_or_init(|| Packed {
            gzip: exposition::compress(self.text, flate2::Compression::best()).unwrap_or_default().into(),
            tag: format!("W/\"{}\"", hex::encode(&Sha256::digest(self.text)[..12])),
        })
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let Packed { gzip, tag } = self.packed();
        let has_it = request.headers().get_all(IF_NONE_MATCH).any(|tags| names(tags.as_bytes(), tag));
        let mut answer = HttpResponse::build(if has_it { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
        protect(&mut answer);
        answer.insert_header((ETAG, tag.as_str()));
        if has_it {
            return answer.finish();
        }
        answer.insert_header((CONTENT_TYPE, self.media_type));
        if !gzip.is_empty() && exposition::takes_gzip(request.headers()) {
            answer.insert_header((CONTENT_ENCODING, "gzip")).body(gzip.clone())
        } else {
            answer.body(self.text)
        }
    }
}

/// Whether one of these tags of `If-None-Match` is this one, or any (RFC 9110, 13.1.2: the comparison is weak).
fn names(tags: &[u8], tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let tags = String::from_utf8_lossy(tags);
    tags.split(',').any(|named| named.trim() == "*" || opaque(named) == opaque(tag))
}

/// The fields that keep a page, and what other pages can do with it, within bounds.
fn protect(answer: &mut HttpResponseBuilder) {
    answer
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("cross-origin-resource-policy", "same-origin"))
        // A new version is seen at once; what did not change is not sent again.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "accept-encoding"));
}

/// Whether the path is the page's or in the folder of its assets: they hold no data.
pub(super) fn is_at(path: &str) -> bool {
    path == "/" || path.strip_prefix(FOLDER).is_some_and(|name| !name.contains('/'))
}

pub async fn page(request: HttpRequest) -> HttpResponse {
    PAGE.answer(&request)
}

pub async fn asset(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let asset = Asset::find(&name).ok_or_else(|| {
        Problem::not_found(format!(
            "{FOLDER}{} is no part of the dashboard",
            name.chars().take(100).collect::<String>()
        ))
    })?;
    Ok(asset.answer(&request))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use actix_web::{
        body::to_bytes,
        http::header::{ACCEPT_ENCODING, HeaderName},
        test::TestRequest,
    };

    use super::*;

    fn all() -> impl Iterator<Item = &'static Asset> {
        ASSETS.iter().chain([&PAGE])
    }

    #[test]
    fn all_of_it_is_small_and_every_file_of_the_folder_is_served() {
        let packed: usize = all().map(|asset| asset.packed().gzip.len()).sum();
        assert!((10_000..150 * 1024).contains(&packed), "{packed} bytes compressed");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<String> = files.collect();
        let served: BTreeSet<String> = all().map(|asset| asset.name.to_owned()).collect();
        assert_eq!(files, served);
        assert!(ASSETS.iter().find(|asset| asset.name == "uplot.js").unwrap().text.contains("(v1.6.32)"));
    }

    /// What stands in `name="…"`, wherever that is.
    fn attributes<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let begin = format!(" {name}=\"");
        text.split(&*begin).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_page_is_made_of_its_assets_and_of_nothing_inline() {
        let page = PAGE.text;
        let named: Vec<_> = ["src", "href"].into_iter().flat_map(|name| attributes(page, name)).collect();
        assert!(named.len() >= 5, "{named:?}");
        for path in named {
            assert!(path.starts_with(FOLDER) && is_at(path), "{path}");
        }
        let scripts = page.matches("<script").count();
        assert_eq!(page.matches("></script>").count(), scripts, "each is a file");
        for inline in ["<style", " style=", " onclick=", " onload=", "javascript:", "data:"] {
            assert!(!page.contains(inline), "{inline}");
        }
        // Modules import what is served.
        for module in ASSETS.iter().filter(|asset| asset.media_type == JAVASCRIPT && asset.name != "uplot.js") {
            for imported in module.text.split(" from \"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let name = imported.strip_prefix("./");
                assert!(name.is_some_and(|name| Asset::find(name).is_some()), "{}: {imported}", module.name);
            }
            assert!(!module.text.contains("innerHTML"), "{}: what is shown is text", module.name);
        }
    }

    async fn ask(fields: &[(HeaderName, &str)]) -> (HttpResponse, Bytes) {
        let mut request = TestRequest::get();
        for (name, value) in fields {
            request = request.append_header((name.clone(), *value));
        }
        let (answer, body) = PAGE.answer(&request.to_http_request()).into_parts();
        (answer.set_body(actix_web::body::BoxBody::new(())), to_bytes(body).await.unwrap())
    }

    #[actix_rt::test]
    async fn a_browser_that_has_it_is_told_so_and_others_get_it_as_they_take_it() {
        let (plain, body) = ask(&[]).await;
        assert_eq!((plain.status(), body.as_ref()), (StatusCode::OK, PAGE.text.as_bytes()));
        assert!(plain.headers().get(CONTENT_ENCODING).is_none());
        let (packed, body) = ask(&[(ACCEPT_ENCODING, "gzip, br")]).await;
        assert_eq!(packed.headers().get(CONTENT_ENCODING).unwrap(), "gzip");
        assert!(body.len() < PAGE.text.len() && body == PAGE.packed().gzip);
        let tag = packed.headers().get(ETAG).unwrap().to_str().unwrap().to_owned();
        let strong = tag.trim_start_matches("W/").to_owned();
        for (given, status) in [
            (tag.as_str(), 304),
            (&strong, 304),
            (&format!("\"a\", {tag}"), 304),
            ("*", 304),
            ("\"a\"", 200),
            ("", 200),
        ] {
            let (answer, body) = ask(&[(IF_NONE_MATCH, given)]).await;
            assert_eq!((answer.status().as_u16(), body.is_empty()), (status, status == 304), "{given}");
            assert_eq!(answer.headers().get(CONTENT_SECURITY_POLICY).unwrap(), POLICY);
        }
    }
}
