#!/usr/bin/env bash
# log4j-core 2.26.1 (Maven Central), an `Http` appender and a `Failover` with a file. Needs java 17 and mvn.
#
# `Failover` writes to its second appender what the first one fails at. It learns of that by an exception, and an appender keeps its
# exceptions to itself by default (`ignoreExceptions`): with an `Http` as it stands, an event that is answered 503 is lost, the file
# stays empty, and the only word of it is on stderr. With `ignoreExceptions="false"` the event is in the file, and so is each one
# after it for a minute (`retryIntervalSeconds`), though the server refused a single one. The same attribute without a `Failover`
# makes the log call itself throw into the program.
#
# Seen: `one 503, then 200: alone: sent 9 of 10, thrown 0; alone, false: sent 9 of 10, thrown 1; failover: sent 9 of 10, in the file
# 0, thrown 0; failover, false: sent 0 of 10, in the file 10, thrown 0`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>finding</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId>
<version>2.26.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs >log
cat >log4j2.xml <<'XML'
<Configuration>
  <Appenders>
    <Http name="a" url="http://127.0.0.1:29691/a"><PatternLayout pattern="%m"/></Http>
    <Http name="b" url="http://127.0.0.1:29691/b" ignoreExceptions="false"><PatternLayout pattern="%m"/></Http>
    <Http name="c" url="http://127.0.0.1:29691/c"><PatternLayout pattern="%m"/></Http>
    <Http name="d" url="http://127.0.0.1:29691/d" ignoreExceptions="false"><PatternLayout pattern="%m"/></Http>
    <File name="c-file" fileName="c.txt"><PatternLayout pattern="%m%n"/></File>
    <File name="d-file" fileName="d.txt"><PatternLayout pattern="%m%n"/></File>
    <Failover name="c-failover" primary="c"><Failovers><AppenderRef ref="c-file"/></Failovers></Failover>
    <Failover name="d-failover" primary="d"><Failovers><AppenderRef ref="d-file"/></Failovers></Failover>
  </Appenders>
  <Loggers>
    <Logger name="a" level="info" additivity="false"><AppenderRef ref="a"/></Logger>
    <Logger name="b" level="info" additivity="false"><AppenderRef ref="b"/></Logger>
    <Logger name="c" level="info" additivity="false"><AppenderRef ref="c-failover"/></Logger>
    <Logger name="d" level="info" additivity="false"><AppenderRef ref="d-failover"/></Logger>
    <Root level="error"/>
  </Loggers>
</Configuration>
XML
cat >Finding.java <<'JAVA'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.logging.log4j.LogManager;

public class Finding {
    public static void main(String[] arguments) throws Exception {
        var sent = new ConcurrentHashMap<String, Integer>();
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 29691), 0);
        server.createContext("/", request -> {
            var refused = new String(request.getRequestBody().readAllBytes()).equals("event 0");
            if (!refused) {
                sent.merge(request.getRequestURI().getPath(), 1, Integer::sum);
            }
            request.sendResponseHeaders(refused ? 503 : 200, -1);
            request.close();
        });
        server.start();
        var names = new LinkedHashMap<String, String>();
        names.put("a", "alone");
        names.put("b", "alone, false");
        names.put("c", "failover");
        names.put("d", "failover, false");
        var seen = new ArrayList<String>();
        for (var name : names.keySet()) {
            var thrown = 0;
            for (var number = 0; number < 10; number += 1) {
                try {
                    LogManager.getLogger(name).info("event {}", number);
                } catch (RuntimeException refused) {
                    thrown += 1;
                }
            }
            var file = Path.of(name + ".txt");
            var kept = Files.exists(file) ? ", in the file " + Files.readAllLines(file).size() : "";
            seen.add("%s: sent %d of 10%s, thrown %d".formatted(names.get(name), sent.getOrDefault("/" + name, 0), kept, thrown));
        }
        server.stop(0);
        System.out.println("one 503, then 200: " + String.join("; ", seen));
        var known = List.of("alone: sent 9 of 10, thrown 0", "alone, false: sent 9 of 10, thrown 1",
            "failover: sent 9 of 10, in the file 0, thrown 0", "failover, false: sent 0 of 10, in the file 10, thrown 0");
        System.exit(seen.equals(known) ? 0 : 1);
    }
}
JAVA
java -cp 'libs/*:.' Finding.java 2>>log
