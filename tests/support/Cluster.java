import java.util.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.TopicPartition;

/** What librdkafka's administrator cannot ask of a cluster: {@code controller}, or {@code move TOPIC BROKER …}. */
public class Cluster {
    public static void main(String[] arguments) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", arguments[0]))) {
            if (arguments[1].equals("controller")) {
                System.out.println(admin.describeMetadataQuorum().quorumInfo().get().leaderId());
                return;
            }
            List<Integer> brokers = new ArrayList<>();
            for (String broker : List.of(arguments).subList(3, arguments.length)) {
                brokers.add(Integer.valueOf(broker));
            }
            String topic = arguments[2];
            Map<TopicPartition, Optional<NewPartitionReassignment>> moves = new HashMap<>();
            admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().forEach(partition ->
                moves.put(new TopicPartition(topic, partition.partition()), Optional.of(new NewPartitionReassignment(brokers))));
            admin.alterPartitionReassignments(moves).all().get();
            while (!admin.listPartitionReassignments(moves.keySet()).reassignments().get().isEmpty()) {
                Thread.sleep(100);
            }
        }
    }
}
