namespace Claviger.AspNetCore;

/// <summary>Which key in custody, and where.</summary>
public sealed class ClavigerOptions
{
    /// <summary>The name of the key.</summary>
    public string Key { get; set; } = "";

    /// <summary>
    /// The first purpose of every chain, in the place of what Data Protection has
    /// for it: SetApplicationName's, and otherwise the path of the content root.
    /// Tokens that are out are valid only under the same. Empty: none.
    /// </summary>
    public string? ApplicationName { get; set; }

    /// <summary>The server's local socket.</summary>
    public string Socket { get; set; } = "/run/claviger/claviger.sock";

    /// <summary>Of one call with everything in it.</summary>
    public TimeSpan Timeout { get; set; } = TimeSpan.FromSeconds(2);

    /// <summary>"cbc" (AES-256-CBC with HMACSHA256, the default of Data Protection) or "gcm".</summary>
    public string Cipher { get; set; } = "cbc";
}
