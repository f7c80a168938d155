#!/usr/bin/env bash
# org.apache.kafka:connect-json 4.1.1 (Maven Central), JsonConverter with `schemas.enable=false`. Needs java 17 and mvn.
#
# Senders that batch put several events into one message, one JSON object a line. JsonConverter reads the first one and ignores all
# that follows it: a message of a thousand events is one event to each connector, without an error, so that neither
# `errors.tolerance` nor a dead letter queue gets what was left out, and offsets and counts of messages are right. What follows need
# not even be JSON, so that a message with rubbish behind its first value passes for a sound one; rubbish in front is refused. The
# topic's other readers (a console, an engine that takes NDJSON) have all events.
#
# Seen: `three lines: {"n":1}; two objects on a line: {"n":1}; rubbish behind: {"n":1}; rubbish in front: DataException`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>finding</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>connect-json</artifactId>
<version>4.1.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs
cat >Finding.java <<'JAVA'
import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.Map;
import org.apache.kafka.connect.json.JsonConverter;

public class Finding {
    static String pass(JsonConverter converter, String message) {
        try {
            var event = converter.toConnectData("events", message.getBytes(UTF_8));
            return new String(converter.fromConnectData("events", event.schema(), event.value()), UTF_8);
        } catch (RuntimeException error) {
            return error.getClass().getSimpleName();
        }
    }

    public static void main(String[] arguments) {
        try (var converter = new JsonConverter()) {
            converter.configure(Map.of("schemas.enable", "false"), false);
            var lines = pass(converter, "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
            var line = pass(converter, "{\"n\":1}{\"n\":2}");
            var behind = pass(converter, "{\"n\":1} rubbish");
            var front = pass(converter, "rubbish {\"n\":1}");
            System.out.println("three lines: " + lines + "; two objects on a line: " + line + "; rubbish behind: " + behind
                + "; rubbish in front: " + front);
            var first = "{\"n\":1}";
            System.exit(lines.equals(first) && line.equals(first) && behind.equals(first) && front.equals("DataException") ? 0 : 1);
        }
    }
}
JAVA
java -cp 'libs/*' Finding.java 2>log
