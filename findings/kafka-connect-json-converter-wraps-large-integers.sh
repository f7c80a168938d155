#!/usr/bin/env bash
# org.apache.kafka:connect-json 4.1.1 (Maven Central), JsonConverter with `schemas.enable=false`. Needs java 17 and mvn.
#
# Each connector that reads JSON events without a schema (to a store, a search index, a database) gets them from this converter. It
# makes an INT64 of each integer, and of one that does not fit it makes the lowest 64 bits: an unsigned 64-bit id, hash or counter
# above 2^63 becomes a negative number, and two ids of 20 digits and more become the same small one, without an error, so that
# neither `errors.tolerance` nor a dead letter queue sees it. The way back writes the wrapped number into JSON again: a copy of a
# topic through the converter differs from the topic. The JSON parser below it has the right number at that point.
#
# Seen: `18446744073709551615 -> -1; 9223372036854775808 -> -9223372036854775808; 18446744073709551623 -> 7;
# 36893488147419103239 -> 7; 9223372036854775807 -> 9223372036854775807`
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

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.kafka.connect.json.JsonConverter;

public class Finding {
    public static void main(String[] arguments) {
        var known = new LinkedHashMap<String, String>();
        known.put("18446744073709551615", "-1");
        known.put("9223372036854775808", "-9223372036854775808");
        known.put("18446744073709551623", "7");
        known.put("36893488147419103239", "7");
        known.put("9223372036854775807", "9223372036854775807");
        try (var converter = new JsonConverter()) {
            converter.configure(Map.of("schemas.enable", "false"), false);
            var seen = new LinkedHashMap<String, String>();
            for (var id : known.keySet()) {
                var event = converter.toConnectData("events", ("{\"id\":" + id + "}").getBytes(UTF_8));
                var again = new String(converter.fromConnectData("events", event.schema(), event.value()), UTF_8);
                seen.put(id, again.replaceAll("[^-0-9]", ""));
            }
            var said = seen.entrySet().stream().map(each -> each.getKey() + " -> " + each.getValue());
            System.out.println(said.collect(Collectors.joining("; ")));
            System.exit(seen.equals(known) ? 0 : 1);
        }
    }
}
JAVA
java -cp 'libs/*' Finding.java 2>log
