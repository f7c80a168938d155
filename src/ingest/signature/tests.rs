//! The vectors are those of the senders' own libraries: standardwebhooks 1.0 and stripe for Python, @octokit/webhooks-methods.

use actix_web::http::header::{HeaderName, HeaderValue};

use super::*;

const BODY: &str = r#"{"type":"login_success","user":"café"}"#;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NOW: i64 = 1_795_420_800;

fn claim(scheme: Scheme, fields: &[(&str, &str)], seconds: i64) -> Result<Claim, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    Claim::of(&headers, scheme, Timestamp(seconds * 1000))
}

fn checked(scheme: Scheme, fields: &[(&str, &str)], secrets: &str, body: &str) -> Result<(), Refusal> {
    claim(scheme, fields, NOW)?.check(body.as_bytes(), &Secrets::parse(scheme, secrets).unwrap())
}

const STANDARD_FIELDS: [(&str, &str); 3] = [
    ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
    ("webhook-timestamp", "1795420800"),
    ("webhook-signature", "v1,tFvjx/o9U11fLap1vN0jfudBcHypXX/jVZcmB4XjdLk="),
];
const STRIPE_SIGNATURE: &str = "54bea3d0e1288049f7d710ba2f7bfd51997de961d939f6aca5acdf8c45c34757";
const GITHUB_SIGNATURE: &str = "sha256=973021243be5a890a48ada1fee09c74a2f5ef54981c057c33d14d622d8060351";
const GITHUB_SECRET: &str = "It's a Secret to Everybody";

#[test]
fn what_the_senders_libraries_sign_is_let_in_and_nothing_else() {
    let stripe = format!(
        "t=1795420800,v1={STRIPE_SIGNATURE},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"
    );
    for (scheme, fields, secret) in [
        (Scheme::StandardWebhooks, &STANDARD_FIELDS[..], SECRET),
        (Scheme::Github, &[(GITHUB, GITHUB_SIGNATURE)], GITHUB_SECRET),
        (Scheme::Stripe, &[(STRIPE, stripe.as_str())], "whsec_test_secret"),
    ] {
        assert_eq!(checked(scheme, fields, secret, BODY), Ok(()), "{scheme:?}");
        // While a secret is changed there are two.
        let other = if scheme == Scheme::StandardWebhooks { "whsec_b3RoZXI=" } else { "other" };
        assert_eq!(checked(scheme, fields, &format!("{other}\n{secret}\n"), BODY), Ok(()));
        let header = fields.last().unwrap().0;
        assert_eq!(checked(scheme, fields, other, BODY), Err(Refusal::Mismatch(header)));
        assert_eq!(checked(scheme, fields, secret, &format!("{BODY}\n")), Err(Refusal::Mismatch(header)));
        let none = claim(scheme, fields, NOW).unwrap().check(BODY.as_bytes(), &Secrets::default());
        assert_eq!(none, Err(Refusal::Mismatch(header)), "without secrets nobody is let in");
    }
    // The example in GitHub's documentation.
    let documented = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(checked(Scheme::Github, &[(GITHUB, documented)], GITHUB_SECRET, "Hello, World!"), Ok(()));
}

#[test]
fn one_of_several_signatures_is_enough_and_what_is_signed_beside_the_body_counts() {
    let with = |index: usize, value: &'static str| {
        let mut fields = STANDARD_FIELDS;
        fields[index].1 = value;
        checked(Scheme::StandardWebhooks, &fields, SECRET, BODY)
    };
    assert_eq!(with(2, "v1a,AAAA v1,AAAA v1,tFvjx/o9U11fLap1vN0jfudBcHypXX/jVZcmB4XjdLk="), Ok(()));
    assert_eq!(
        with(2, "v2,tFvjx/o9U11fLap1vN0jfudBcHypXX/jVZcmB4XjdLk="),
        Err(Refusal::Malformed(STANDARD, "have v1, and base64"))
    );
    assert_eq!(with(2, "v1,tFvjx"), Err(Refusal::Malformed(STANDARD, "have v1, and base64")));
    assert_eq!(with(0, "msg_other"), Err(Refusal::Mismatch(STANDARD)));
    assert_eq!(with(1, "1795420801"), Err(Refusal::Mismatch(STANDARD)));
    let many = format!("{}v1,tFvjx/o9U11fLap1vN0jfudBcHypXX/jVZcmB4XjdLk=", "v1,AAAA ".repeat(MOST));
    let mut fields = STANDARD_FIELDS;
    fields[2].1 = &many;
    assert_eq!(
        checked(Scheme::StandardWebhooks, &fields, SECRET, BODY),
        Err(Refusal::Mismatch(STANDARD)),
        "only so many are tried"
    );
    let stripe = format!("t=1795420800,v1={},v1={STRIPE_SIGNATURE}", "0".repeat(64));
    assert_eq!(checked(Scheme::Stripe, &[(STRIPE, &stripe)], "whsec_test_secret", BODY), Ok(()));
}

#[test]
fn a_time_is_believed_for_five_minutes_before_and_after() {
    let stripe = format!("t=1795420800,v1={STRIPE_SIGNATURE}");
    for (scheme, fields, header) in [
        (Scheme::StandardWebhooks, &STANDARD_FIELDS[..], TIMESTAMP),
        (Scheme::Stripe, &[(STRIPE, stripe.as_str())], STRIPE),
    ] {
        for (now, expected) in [
            (NOW + 300, None),
            (NOW - 300, None),
            (NOW + 301, Some(Refusal::TooOld(header))),
            (NOW - 301, Some(Refusal::TooNew(header))),
        ] {
            assert_eq!(claim(scheme, fields, now).err(), expected, "{now}");
        }
    }
    assert!(claim(Scheme::Github, &[(GITHUB, GITHUB_SIGNATURE)], 0).is_ok(), "GitHub signs no time");
}

#[test]
fn each_refusal_says_which_header_and_what_of_it() {
    let number = "have the time as a number of seconds since 1970";
    let stripe = "have t=, a time in seconds, and v1= with 64 hexadecimal digits, with commas between";
    let github = "be sha256= and 64 hexadecimal digits";
    let twice = [(GITHUB, GITHUB_SIGNATURE), (GITHUB, GITHUB_SIGNATURE)];
    for (scheme, fields, expected) in [
        (Scheme::StandardWebhooks, &[][..], Refusal::Missing(ID)),
        (Scheme::StandardWebhooks, &STANDARD_FIELDS[..1], Refusal::Missing(TIMESTAMP)),
        (Scheme::StandardWebhooks, &STANDARD_FIELDS[..2], Refusal::Missing(STANDARD)),
        (
            Scheme::StandardWebhooks,
            &[STANDARD_FIELDS[0], (TIMESTAMP, "now"), STANDARD_FIELDS[2]],
            Refusal::Malformed(TIMESTAMP, number),
        ),
        (
            Scheme::StandardWebhooks,
            &[STANDARD_FIELDS[0], (TIMESTAMP, "+1795420800"), STANDARD_FIELDS[2]],
            Refusal::Malformed(TIMESTAMP, number),
        ),
        (Scheme::Github, &[], Refusal::Missing(GITHUB)),
        (Scheme::Github, &[(GITHUB, "sha1=00")], Refusal::Malformed(GITHUB, github)),
        (Scheme::Github, &[(GITHUB, "sha256=00")], Refusal::Malformed(GITHUB, github)),
        (Scheme::Github, &twice, Refusal::Malformed(GITHUB, "stand there once")),
        (Scheme::Github, &[(GITHUB, "sha256=é")], Refusal::Malformed(GITHUB, "be ASCII")),
        (Scheme::Stripe, &[], Refusal::Missing(STRIPE)),
        (Scheme::Stripe, &[(STRIPE, "v1=00")], Refusal::Malformed(STRIPE, stripe)),
        (Scheme::Stripe, &[(STRIPE, "t=1795420800,v1=00")], Refusal::Malformed(STRIPE, stripe)),
        (Scheme::Stripe, &[(STRIPE, "t=x,v1=00")], Refusal::Malformed(STRIPE, number)),
    ] {
        assert_eq!(claim(scheme, fields, NOW), Err(expected), "{fields:?}");
    }
    for (refusal, reason, sentence) in [
        (
            Refusal::Missing(GITHUB),
            "missing",
            "this needs a signature, and the header x-hub-signature-256 is missing: have the sender sign what it sends, with the secret of this source",
        ),
        (
            Refusal::Malformed(GITHUB, github),
            "malformed",
            "the header x-hub-signature-256 is malformed: it must be sha256= and 64 hexadecimal digits",
        ),
        (
            Refusal::TooOld(STRIPE),
            "too_old",
            "the time in the header stripe-signature is more than 5 minutes ago: sign it anew when it is sent again, and set the clocks",
        ),
        (
            Refusal::TooNew(STRIPE),
            "too_new",
            "the time in the header stripe-signature is more than 5 minutes ahead: set the clocks",
        ),
        (
            Refusal::Mismatch(STANDARD),
            "mismatch",
            "no signature in the header webhook-signature is that of this body: sign the bytes as they are sent, with the secret of this source",
        ),
    ] {
        let problem = Problem::from(refusal);
        assert_eq!(
            (problem.status.as_u16(), problem.challenge, &*problem.detail),
            (401, Some(Challenge::Signature), sentence)
        );
        assert_eq!(refusal.reason(), reason);
    }
}
