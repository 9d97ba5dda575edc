using Microsoft.AspNetCore.DataProtection;
using Microsoft.AspNetCore.DataProtection.KeyManagement;
using Microsoft.AspNetCore.Hosting;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.DependencyInjection.Extensions;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Options;

namespace Claviger.AspNetCore;

public static class ClavigerServices
{
    /// <summary>
    /// Puts a key in custody in the place of Data Protection's key ring. Call it
    /// after whatever adds Data Protection.
    /// </summary>
    public static IServiceCollection AddClavigerDataProtection(this IServiceCollection services, Action<ClavigerOptions> configure)
    {
        var options = new ClavigerOptions();
        configure(options);
        if (options.Key == "")
        {
            throw new ArgumentException("no key is named: set ClavigerOptions.Key to the name of the key in custody", nameof(configure));
        }
        services.AddDataProtection();
        // It would read a key ring at start, which nothing needs any more.
        foreach (var hosted in services.Where(d => d.ServiceType == typeof(IHostedService) && d.ImplementationType?.Assembly == typeof(IKeyManager).Assembly).ToList())
        {
            services.Remove(hosted);
        }
        services.AddSingleton(_ => new CustodyKey(options));
        services.Replace(ServiceDescriptor.Singleton<IDataProtectionProvider>(provider =>
        {
            var name = options.ApplicationName ?? provider.GetRequiredService<IOptions<DataProtectionOptions>>().Value.ApplicationDiscriminator;
            return new CustodyDataProtector(provider.GetRequiredService<CustodyKey>(), string.IsNullOrEmpty(name) ? [] : [name]);
        }));
        return services.AddTransient<IStartupFilter, Watch>();
    }
}
